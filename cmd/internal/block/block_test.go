package block_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/internal/block"
)

func TestBlocks(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "README.md")
	content := func() string {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(text)
	}
	const other = "<!-- other -->\nstays\n<!-- /other -->\n"
	require.NoError(t, os.WriteFile(file, []byte("before\n"+other+"<!-- table -->\nold\n<!-- /table -->\nafter\n"), 0o644))
	for range 2 { // what is written again is the same
		require.NoError(t, block.Write(file, "table", "| a |\n"))
		assert.Equal(t, "before\n"+other+"<!-- table -->\n\n| a |\n\n<!-- /table -->\nafter\n", content())
	}
	text, err := block.Read(file, "table")
	require.NoError(t, err)
	assert.Equal(t, "| a |", text)

	for _, wrong := range []string{"", "<!-- table -->\n", "<!-- /table -->\n<!-- table -->\n", "<!-- other -->\n<!-- /other -->\n", "<!-- table --> x\n<!-- /table -->\n"} {
		require.NoError(t, os.WriteFile(file, []byte(wrong), 0o644))
		require.ErrorContains(t, block.Write(file, "table", "new"), "has no lines <!-- table --> and <!-- /table -->: add them", wrong)
		_, err := block.Read(file, "table")
		require.Error(t, err, wrong)
		assert.Equal(t, wrong, content())
	}
	require.ErrorIs(t, block.Write(file+".none", "table", "new"), os.ErrNotExist)
	require.NoFileExists(t, file+".none")
}
