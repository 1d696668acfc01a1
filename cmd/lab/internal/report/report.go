// Package report has what the laboratory's reports have in common: tables for a terminal, for Markdown and for HTML, plots as
// inline SVG, and the frame of a page.
//
// It promises that a page needs no other file and no network, that it can be read in a light and in a dark theme and on a
// screen 360 pixels wide, and that everything in it is escaped.
package report

import (
	_ "embed"
	"html/template"
)

//go:embed parts.html
var parts string

// Page parses the text of a page. It may use the templates "head" (of a title; it opens the page), "table" (of a Table),
// "legend" (of some Series) and "chart" (of a Chart).
func Page(text string) *template.Template {
	page := template.Must(template.New("page").Parse(text))
	template.Must(page.New("parts").Parse(parts))
	return page
}
