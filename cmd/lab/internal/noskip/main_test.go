package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFilter(t *testing.T) {
	const (
		passed = `{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"output","Package":"p","Output":"ok p\n"}
			{"Action":"pass","Package":"p"}`
		failed = `{"Action":"output","Package":"p","Test":"TestA","Output":"reason\n"}
			{"Action":"fail","Package":"p","Test":"TestA"}
			{"Action":"output","Package":"p","Output":"FAIL p\n"}
			{"Action":"fail","Package":"p"}`
		skipped = `{"Action":"output","Package":"p","Test":"TestA","Output":"no server\n"}
			{"Action":"skip","Package":"p","Test":"TestA"}
			{"Action":"output","Package":"p","Output":"ok p\n"}
			{"Action":"pass","Package":"p"}`
		panicked = `{"Action":"output","Package":"p","Test":"TestA","Output":"still running\n"}
			{"Action":"output","Package":"p","Output":"panic\n"}
			{"Action":"fail","Package":"p"}`
		withoutTests = `{"Action":"output","Package":"p","Output":"? p [no test files]\n"}
			{"Action":"skip","Package":"p"}`
	)
	for name, test := range map[string]struct{ in, out, err string }{
		"passed":           {passed, "ok p\n", ""},
		"failed":           {failed, "reason\nFAIL p\n", "tests failed"},
		"skipped":          {skipped, "no server\nok p\n", `1 tests were skipped, and none may be: ["p TestA"]`},
		"panicked":         {panicked, "still running\npanic\n", "tests failed"},
		"without tests":    {withoutTests, "? p [no test files]\n", ""},
		"nothing at all":   {"", "", "no package was tested"},
		"something else":   {"FAIL", "", "this is not the output of go test -json: invalid character 'F' looking for beginning of value"},
		"cut in the midst": {passed + `{"Act`, "ok p\n", "this is not the output of go test -json: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := filter(strings.NewReader(test.in), &out)
			require.Equal(t, test.out, out.String())
			if test.err == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.err)
			}
		})
	}
}
