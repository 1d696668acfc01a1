package handlers

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

type authorityJSON struct {
	Scope domain.Scope `json:"scope"`
	Epoch string       `json:"epoch"`
	Since time.Time    `json:"since"`
}

func newAuthorityJSON(a domain.Authority) authorityJSON {
	return authorityJSON{Scope: a.Scope, Epoch: strconv.FormatInt(a.Epoch, 10), Since: a.Since.UTC()}
}

type strategyJSON struct {
	Name      string          `json:"name"`
	Summary   string          `json:"summary"`
	Fences    bool            `json:"fences"`
	Available bool            `json:"available"`
	Problem   string          `json:"problem,omitempty"`
	Server    string          `json:"server,omitempty"`
	InCharge  []authorityJSON `json:"in_charge"`
	Resources int64           `json:"resources"`
}

// strategies tells only admins where the lock servers are.
func (s *server) strategies(c echo.Context) error {
	strategies, err := s.Strategies(c.Request().Context())
	if err != nil {
		return err
	}
	answer := struct {
		Strategies []strategyJSON `json:"strategies"`
	}{make([]strategyJSON, len(strategies))}
	for i, st := range strategies {
		j := strategyJSON{
			Name: st.Name, Summary: st.Summary, Fences: st.Fences, Available: st.Available, Problem: st.Problem,
			InCharge: make([]authorityJSON, len(st.InCharge)), Resources: st.Resources,
		}
		if callerOf(c).Admin {
			j.Server = st.Server
		}
		for k, a := range st.InCharge {
			j.InCharge[k] = newAuthorityJSON(a)
		}
		answer.Strategies[i] = j
	}
	return c.JSON(http.StatusOK, answer)
}

type auditJSON struct {
	Resource domain.Key     `json:"resource"`
	Limit    int64          `json:"limit"`
	Sold     int64          `json:"sold"`
	Held     int64          `json:"held"`
	Oversold int64          `json:"oversold"`
	Drift    int64          `json:"drift"`
	Refused  int64          `json:"refused"`
	Strategy string         `json:"strategy"`
	Fencing  domain.Fencing `json:"fencing"`
	Epoch    string         `json:"epoch"`
	Token    string         `json:"token"`
	OK       bool           `json:"ok"`
	Findings []string       `json:"findings,omitempty"` // what is off, in words
}

func auditOf(r domain.AuditRow) auditJSON {
	return auditJSON{
		Resource: r.Key, Limit: r.Limit, Sold: r.Sold, Held: r.Held, Oversold: r.Oversold, Drift: r.Drift,
		Refused: r.Refused, Strategy: r.Strategy, Fencing: r.Fencing,
		Epoch: strconv.FormatInt(r.LastEpoch, 10), Token: strconv.FormatInt(int64(r.LastToken), 10),
		OK: r.OK(), Findings: r.Findings(),
	}
}

// AuditJSON is a resource's verdict as GET /v1/audit answers it, for the command that prints the same.
func AuditJSON(r domain.AuditRow) any { return auditOf(r) }

// audit answers 200 whatever the verdict is: the audit itself has worked.
func (s *server) audit(c echo.Context) error {
	query := queryOf(c)
	var rows []domain.AuditRow
	var next string
	var err error
	if resource, one := query["resource"]; one {
		if len(query) > 1 {
			return domain.Invalid("resource", "must be given alone: it has no pages")
		}
		rows, err = s.Service.Audit(c.Request().Context(), domain.Key(resource))
	} else {
		var page domain.Page
		if page, err = pageOf(query); err != nil {
			return err
		}
		rows, next, err = s.Service.AuditPage(c.Request().Context(), page)
	}
	if err != nil {
		return err
	}
	answer := struct {
		OK         bool        `json:"ok"` // of what is listed here
		Resources  []auditJSON `json:"resources"`
		NextCursor string      `json:"next_cursor,omitempty"`
	}{true, make([]auditJSON, len(rows)), next}
	for i, r := range rows {
		answer.OK = answer.OK && r.OK()
		answer.Resources[i] = auditOf(r)
	}
	return c.JSON(http.StatusOK, answer)
}

// healthz says that the process is alive. It asks no server: a restart would not mend one.
func (s *server) healthz(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]string{"status": "ok", "version": s.Version})
}

// readyz says whether this instance should be sent requests.
func (s *server) readyz(c echo.Context) error {
	if err := s.Ready(c.Request().Context()); err != nil {
		return fmt.Errorf("%w: %v", errNotReady, err) // %v: the reason must not find a row of its own in the table
	}
	return c.JSON(http.StatusOK, map[string]string{"status": "ready"})
}

func (s *server) instances(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string][]string{"instances": append([]string{}, s.Instances...)})
}
