package handlers

import (
	"maps"
	"net/url"
	"slices"
	"strconv"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

const keyQuery = "query"

// strict reads the query of a route of the API, which knows these parameters, before anything is done. Other routes are not
// bothered: the page keeps its settings there.
func strict(known []string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if !ofAPI(c) {
				return next(c)
			}
			query, err := readQuery(c, known...)
			if err != nil {
				return err
			}
			c.Set(keyQuery, query)
			return next(c)
		}
	}
}

// queryOf is what strict has read.
func queryOf(c echo.Context) map[string]string { return c.Get(keyQuery).(map[string]string) }

// readQuery reads the query as strictly as bodies are read: a misspelt parameter would otherwise ask for everything.
func readQuery(c echo.Context, known ...string) (map[string]string, error) {
	all, err := url.ParseQuery(c.Request().URL.RawQuery)
	if err != nil {
		return nil, domain.Invalid("query", "must be name=value, escaped as in a form")
	}
	query := make(map[string]string, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		values := all[name]
		switch {
		case !slices.Contains(known, name):
			return nil, domain.Invalid(shown(name), "must be left out: there is no such parameter")
		case len(values) > 1:
			return nil, domain.Invalid(name, "must be given once")
		case values[0] == "":
			return nil, domain.Invalid(name, "must not be empty; leave it out instead")
		}
		query[name] = values[0]
	}
	return query, nil
}

// pageOf is the part of a list that the query asks for.
func pageOf(query map[string]string) (page domain.Page, err error) {
	page = domain.Page{Cursor: query["cursor"], Limit: domain.DefaultPage}
	if limit, given := query["limit"]; given {
		if page.Limit, err = strconv.ParseInt(limit, 10, 64); err != nil {
			return page, domain.Invalid("limit", "must be a whole number")
		}
	}
	return page, nil
}
