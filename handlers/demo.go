package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

// Demo is what a demonstration adds: operations that let its page slow down, switch and break things. They are no part of
// the API, and are mounted only where they were asked for.
type Demo struct {
	// Review makes a slow step that takes so long.
	Review func(time.Duration) func(context.Context, domain.Reservation) error
	// Switch puts another strategy in charge of a resource. One that there is not, or not here, is a *domain.InvalidError.
	Switch func(ctx context.Context, key domain.Key, strategy string) (domain.Authority, error)
	// Lab is the base URL of the laboratory that can break servers; empty if there is none.
	Lab      string
	LeaseTTL time.Duration
}

const (
	pathDemo = "/demo"
	// The longest slow step: shorter than the wait for a lock, or nobody else would ever see the end of it, and than the five
	// seconds after which PostgreSQL ends a transaction that is kept open over it.
	maxSlow = 4 * time.Second
	// The laboratory answers in little, or not at all.
	maxLabAnswer = 64 << 10
)

func (s *server) demoRoutes() []route {
	return []route{
		{http.MethodGet, pathDemo, admin, s.demo, nil},
		{http.MethodPost, pathDemo + "/items/:sku/reservations", admin, s.demoReserve, nil},
		{http.MethodPost, pathDemo + "/items/:sku/strategy", admin, s.demoSwitch, nil},
		{http.MethodPost, pathDemo + "/lab/:fault", admin, s.demoFault, nil},
	}
}

// demo says what the page can do here. A laboratory that does not answer is told of, and is no error.
func (s *server) demo(c echo.Context) error {
	answer := struct {
		Version  string          `json:"version"`
		LeaseTTL float64         `json:"lease_ttl_ms"`
		Lab      json.RawMessage `json:"lab,omitempty"`
		NoLab    string          `json:"no_lab,omitempty"`
	}{Version: s.Version, LeaseTTL: milliseconds(s.Demo.LeaseTTL)}
	if s.Demo.Lab == "" {
		answer.NoLab = "This instance runs outside the laboratory, so nobody here can break its servers. Run make demo."
		return c.JSON(http.StatusOK, answer)
	}
	status, body, err := s.askLab(c.Request().Context(), http.MethodGet, "", nil)
	if err != nil || status != http.StatusOK {
		answer.NoLab = "The laboratory does not answer. Start it again: make demo."
	} else {
		answer.Lab = body
	}
	return c.JSON(http.StatusOK, answer)
}

// demoReserve reserves as the API does, with a slow step between read and write if one is asked for.
func (s *server) demoReserve(c echo.Context) error {
	in, err := decode[struct {
		Quantity   int64   `json:"quantity"`
		CustomerID *string `json:"customer_id,omitempty"`
		SlowMS     *int64  `json:"slow_ms,omitempty"`
	}](c)
	if err != nil {
		return err
	}
	slow := time.Duration(deref(in.SlowMS)) * time.Millisecond
	if deref(in.SlowMS) < 0 || deref(in.SlowMS) > int64(maxSlow/time.Millisecond) {
		return domain.Invalid("slow_ms", "must be between 0 and %d", maxSlow/time.Millisecond)
	}
	service := *s.Service
	if slow > 0 {
		service.Review = s.Demo.Review(slow)
	}
	reservation, receipt, err := service.Reserve(c.Request().Context(), callerOf(c), domain.NewReservation{
		SKU: c.Param("sku"), Quantity: in.Quantity, CustomerID: deref(in.CustomerID),
	}, nil)
	return orderReply(domain.Order{Reservation: reservation}).answer(c, receipt, err)
}

func (s *server) demoSwitch(c echo.Context) error {
	in, err := decode[struct {
		Strategy string `json:"strategy"`
	}](c)
	if err != nil {
		return err
	}
	after, err := s.Demo.Switch(c.Request().Context(), domain.ItemKey(c.Param("sku")), in.Strategy)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, struct {
		Strategy string `json:"strategy"`
		authorityJSON
	}{after.Strategy, newAuthorityJSON(after)})
}

// demoFault hands a fault to the laboratory, and its answer back.
func (s *server) demoFault(c echo.Context) error {
	if s.Demo.Lab == "" {
		return fmt.Errorf("there is no laboratory here: %w", domain.ErrNotFound)
	}
	body, err := readBody(c)
	if err != nil {
		return err
	}
	status, answer, err := s.askLab(c.Request().Context(), http.MethodPost, c.Param("fault"), body)
	if err != nil {
		return &domain.UnavailableError{Server: "The laboratory", Err: err}
	}
	return c.JSONBlob(status, answer)
}

func (s *server) askLab(ctx context.Context, method, fault string, body []byte) (status int, answer []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, method, s.Demo.Lab+"/"+url.PathEscape(fault), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set(echo.HeaderContentType, echo.MIMEApplicationJSON)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(response.Body, maxLabAnswer)); err == nil && !json.Valid(answer) {
		err = fmt.Errorf("%s is no answer of a laboratory", response.Status)
	}
	return response.StatusCode, answer, err
}
