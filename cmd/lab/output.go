package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// progressLine rewrites one line on a terminal. Anywhere else it prints a line now and then.
func progressLine(w *os.File) (show func(text string), done func()) {
	if term.IsTerminal(int(w.Fd())) {
		const clear = "\r\x1b[K"
		return func(text string) { fmt.Fprint(w, clear, text) }, func() { fmt.Fprint(w, clear) }
	}
	last := time.Now()
	return func(text string) {
		if time.Since(last) >= 2*time.Second {
			last = time.Now()
			fmt.Fprintln(w, text)
		}
	}, func() {}
}

// writable makes sure, before anything is measured, that the reports can be written. An empty name is none.
func writable(names ...string) error {
	for _, name := range names {
		if name == "" {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// writeReport writes a report to the files that are named. Where one cannot be written, the other is all the same.
func writeReport(jsonFile, htmlFile string, report interface{ WriteHTML(io.Writer) error }) (err error) {
	if jsonFile != "" {
		err = writeJSON(jsonFile, report)
	}
	if htmlFile != "" {
		err = errors.Join(err, writeHTML(htmlFile, report.WriteHTML))
	}
	return err
}

func writeJSON(name string, report any) error {
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(data, '\n'), 0o644)
}

// writeHTML writes the whole page or nothing.
func writeHTML(name string, write func(io.Writer) error) error {
	var page bytes.Buffer
	if err := write(&page); err != nil {
		return err
	}
	return os.WriteFile(name, page.Bytes(), 0o644)
}
