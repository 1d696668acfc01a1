package domain

// StrategyStatus is what an instance knows of one way to lock.
type StrategyStatus struct {
	Name      string
	Summary   string
	Fences    bool   // it issues tokens, so it can be used where fencing is enforced
	Available bool   // this instance can use it now
	Problem   string // why not, and what to do about it
	Server    string // address without credentials; empty if it needs no server of its own
	InCharge  []Authority
	Resources int64 // how many single resources it is in charge of
}
