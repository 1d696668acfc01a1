// Package block writes and reads the blocks of a text that a command makes, such as the tables in the README: what stands
// between a line <!-- NAME --> and a line <!-- /NAME -->.
//
// It promises that Write changes nothing outside the two lines, nothing at all where they are missing, and what Read returns
// into itself: so a block is current if Read returns what its command would write.
package block

import (
	"fmt"
	"os"
	"strings"
)

// Read returns what the file's block of that name holds, without the empty lines around it.
func Read(file, name string) (string, error) {
	_, text, _, err := cut(file, name)
	return strings.Trim(text, "\n"), err
}

// Write has the file's block of that name hold the text, with an empty line before and behind it.
func Write(file, name, text string) error {
	before, _, after, err := cut(file, name)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(before+"\n"+strings.Trim(text, "\n")+"\n\n"+after), 0o644)
}

// cut returns what the file holds up to the block, in it, and from its end on.
func cut(file, name string) (before, text, after string, err error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", "", "", err
	}
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->\n"
	before, rest, begins := strings.Cut(string(content), begin)
	text, after, ends := strings.Cut(rest, end)
	if !begins || !ends {
		return "", "", "", fmt.Errorf("%s has no lines %s and %s: add them where the block is to be", file, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin, text, end + after, nil
}
