package domain

import (
	"context"
	"fmt"
)

// AuditRow is the verdict on one resource. It is counted from reservations, redemptions and the ledger; the counters are
// only compared with them.
type AuditRow struct {
	Key       Key
	Limit     int64 // stock ever added, or the coupon's maximum
	Sold      int64 // confirmed units, or uses
	Held      int64
	Oversold  int64 // sold and held beyond the limit
	Drift     int64 // by how much the counters differ from the ledger and from the reservations: lost updates
	Disagree  int64 // reservations and redemptions of which the ledger tells something else, or that are in one of them only
	OverLimit int64 // customers who have used the coupon more often than allowed
	WentBack  int64 // accepted writes with an older token than the write before, or with another grant's
	Behind    bool  // the fence is behind what was written under it, or ahead of its authority
	Missing   bool  // there is no item, no coupon or no fence to what else there is
	Refused   int64 // writes that the fence turned away
	Strategy  string
	Fencing   Fencing
	LastEpoch int64
	LastToken Token
}

// Findings says what is off, in words; there are none if all is well.
func (a AuditRow) Findings() []string {
	var findings []string
	note := func(n int64, format string) {
		if n != 0 {
			findings = append(findings, fmt.Sprintf(format, n))
		}
	}
	note(a.Oversold, "oversold by %d")
	note(a.Drift, "the counters are off by %d")
	note(a.Disagree, "the ledger disagrees with %d of its reservations or redemptions")
	note(a.OverLimit, "%d customers have used it more often than allowed")
	note(a.WentBack, "%d writes have an older token than the write before them")
	if a.Behind {
		findings = append(findings, "the fence is behind what was written under it, or ahead of its authority")
	}
	if a.Missing {
		findings = append(findings, "its own row or its fence is missing")
	}
	return findings
}

// OK is the verdict.
func (a AuditRow) OK() bool { return len(a.Findings()) == 0 }

// AuditSum is what the audit finds over many resources.
type AuditSum struct {
	Oversold, Drift int64
	Off             int64 // resources with any finding
}

// Audit compares what was given out of a resource with what there ever was.
func (s *Service) Audit(ctx context.Context, key Key) ([]AuditRow, error) {
	if !key.valid() {
		return nil, Invalid("resource", "must look like item/<sku> or coupon/<code>")
	}
	return s.Store.Audit(ctx, key)
}

// AuditPage audits a page of all resources, and returns the cursor of the next page.
func (s *Service) AuditPage(ctx context.Context, p Page) (rows []AuditRow, next string, err error) {
	keys, next, err := list(p, func(k Key) Key { return k }, func(after Key, limit int64) ([]Key, error) {
		return s.Store.Resources(ctx, after, limit)
	})
	if err != nil || len(keys) == 0 {
		return nil, "", err
	}
	rows, err = s.Store.Audit(ctx, keys...)
	return rows, next, err
}
