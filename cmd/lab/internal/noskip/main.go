// Command noskip reads the output of go test -json and prints it as go test does without -v. It fails when a test
// failed, and also when one was skipped: a skipped test would otherwise look like a passed one.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := filter(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "noskip:", err)
		os.Exit(1)
	}
}

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

func filter(in io.Reader, out io.Writer) error {
	// What a test prints is shown only if it fails, or if its package ends while it is still running.
	type key struct{ pkg, test string }
	printed := make(map[key][]string)
	show := func(k key) {
		for _, line := range printed[k] {
			fmt.Fprint(out, line)
		}
		delete(printed, k)
	}
	var packages, failed int
	var skipped []string
	decoder := json.NewDecoder(in)
	for {
		var e event
		err := decoder.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("this is not the output of go test -json: %w", err)
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "output":
			printed[k] = append(printed[k], e.Output)
		case "pass", "fail", "skip":
			if e.Action == "fail" {
				failed++
			}
			if e.Test != "" {
				if e.Action == "skip" {
					skipped = append(skipped, e.Package+" "+e.Test)
				}
				if e.Action == "pass" {
					delete(printed, k)
				} else {
					show(k)
				}
				break
			}
			packages++
			for other := range printed {
				if other.pkg == e.Package && other.test != "" {
					show(other)
				}
			}
			show(k)
		}
	}
	switch {
	case packages == 0:
		return errors.New("no package was tested")
	case len(skipped) > 0:
		return fmt.Errorf("%d tests were skipped, and none may be: %q", len(skipped), skipped)
	case failed > 0:
		return errors.New("tests failed")
	}
	return nil
}
