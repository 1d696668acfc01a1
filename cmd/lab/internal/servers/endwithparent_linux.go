package servers

import "syscall"

// endWithParent has the kernel send the signal when the thread that started the process is gone. It works even
// when the janitor was killed too.
func endWithParent(attr *syscall.SysProcAttr, s syscall.Signal) {
	attr.Pdeathsig = s
}
