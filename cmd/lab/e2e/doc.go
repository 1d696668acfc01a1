// Package e2e tests the whole of Fencepost from outside: the program as it is built, three instances of it, real servers
// that are stopped and started again. It has no code of its own beside the tests.
//
// Its negative control is the strategy none, which has to oversell in the same race that the others pass.
package e2e
