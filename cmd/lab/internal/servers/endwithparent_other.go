//go:build !linux

package servers

import "syscall"

// endWithParent does nothing: only Linux can tell a child that its parent is gone. The janitor remains.
func endWithParent(*syscall.SysProcAttr, syscall.Signal) {}
