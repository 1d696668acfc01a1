package main

import (
	"os"
	"testing"
)

// asProgram makes the test's program the service, for tests that need a process of their own: the authorities that a process
// trusts are read once.
const asProgram = "FENCEPOST_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}
