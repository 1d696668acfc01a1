// Package e2e tests the page in a real browser, as a reader sees it. It holds nothing but tests.
//
// It promises that the page says what the database counted and nothing else: the tests run it against services that tell
// the truth and against ones that oversell, lose their counters, refuse or are gone; and its stories against the laboratory,
// whose servers are really broken.
package e2e
