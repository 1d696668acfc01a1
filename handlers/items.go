package handlers

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

// lockInput is the part of a new resource that says how it is locked.
type lockInput struct {
	Strategy *string `json:"strategy,omitempty"`
	Fencing  *string `json:"fencing,omitempty"`
}

// spec returns what was said, with empty text for what was left out. Empty text in the request itself is refused: it is
// not the name of anything.
func (l *lockInput) spec() (strategy string, fencing domain.Fencing, err error) {
	if l == nil {
		return "", "", nil
	}
	if strategy, err = filled("lock.strategy", l.Strategy); err != nil {
		return "", "", err
	}
	f, err := filled("lock.fencing", l.Fencing)
	return strategy, domain.Fencing(f), err
}

// filled is the value of an optional field that has no empty value.
func filled(field string, value *string) (string, error) {
	if value == nil {
		return "", nil
	}
	if *value == "" {
		return "", domain.Invalid(field, "must not be empty; leave it out instead")
	}
	return *value, nil
}

// fenceJSON is how a resource is guarded. Numbers are text: see fullToken.
type fenceJSON struct {
	Strategy string         `json:"strategy"`
	Fencing  domain.Fencing `json:"fencing"`
	Fence    struct {
		Epoch string `json:"epoch"`
		Token string `json:"token"`
	} `json:"fence"`
}

func fenceOf(f domain.Fence) fenceJSON {
	j := fenceJSON{Strategy: f.Strategy, Fencing: f.Fencing}
	j.Fence.Epoch = strconv.FormatInt(f.Epoch, 10)
	j.Fence.Token = strconv.FormatInt(int64(f.Token), 10)
	return j
}

type stockJSON struct {
	SKU       string `json:"sku"`
	Name      string `json:"name"`
	OnHand    int64  `json:"on_hand"`
	Reserved  int64  `json:"reserved"`
	Available int64  `json:"available"`
	Sold      int64  `json:"sold"`
}

func stockOf(i domain.Item) stockJSON {
	return stockJSON{
		SKU: i.SKU, Name: i.Name,
		OnHand: i.OnHand, Reserved: i.Reserved, Available: i.Available(), Sold: i.Sold,
	}
}

type itemJSON struct {
	stockJSON
	fenceJSON
}

func itemOf(v domain.ItemView) itemJSON { return itemJSON{stockOf(v.Item), fenceOf(v.Fence)} }

func (s *server) createItem(c echo.Context) error {
	in, err := decode[struct {
		SKU   string     `json:"sku"`
		Name  string     `json:"name"`
		Stock int64      `json:"stock"`
		Lock  *lockInput `json:"lock,omitempty"`
	}](c)
	if err != nil {
		return err
	}
	strategy, fencing, err := in.Lock.spec()
	if err != nil {
		return err
	}
	render := func(item domain.ItemView) reply {
		return reply{http.StatusCreated, "/v1/items/" + item.SKU, itemOf(item)}
	}
	once, err := once(c, render)
	if err != nil {
		return err
	}
	item, err := s.Service.CreateItem(c.Request().Context(), domain.NewItem{
		SKU: in.SKU, Name: in.Name, Stock: in.Stock,
		Strategy: strategy, Fencing: fencing,
	}, once)
	return render(item).answer(c, domain.Receipt{}, err)
}

func (s *server) items(c echo.Context) error {
	page, err := pageOf(queryOf(c))
	if err != nil {
		return err
	}
	items, next, err := s.Service.Items(c.Request().Context(), page)
	if err != nil {
		return err
	}
	answer := struct {
		Items      []itemJSON `json:"items"`
		NextCursor string     `json:"next_cursor,omitempty"`
	}{make([]itemJSON, len(items)), next}
	for i, item := range items {
		answer.Items[i] = itemOf(item)
	}
	return c.JSON(http.StatusOK, answer)
}

func (s *server) item(c echo.Context) error {
	item, err := s.Service.Item(c.Request().Context(), c.Param("sku"))
	if err != nil {
		return err
	}
	body := itemOf(item)
	return tagged(c, itemTag(body), body)
}

func (s *server) restock(c echo.Context) error {
	in, err := decode[struct {
		Quantity int64 `json:"quantity"`
	}](c)
	if err != nil {
		return err
	}
	render := func(item domain.Item) reply { return reply{status: http.StatusOK, body: stockOf(item)} }
	once, err := once(c, render)
	if err != nil {
		return err
	}
	item, receipt, err := s.Service.Restock(c.Request().Context(), c.Param("sku"), in.Quantity, stockExpected(c.Request()), once)
	return render(item).answer(c, receipt, err)
}

type lineJSON struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

type reservationJSON struct {
	ID         string                  `json:"id"`
	State      domain.ReservationState `json:"state"`
	Lines      []lineJSON              `json:"lines"`
	CustomerID string                  `json:"customer_id"`
	CreatedAt  time.Time               `json:"created_at"`
	ExpiresAt  time.Time               `json:"expires_at"`
	SettledAt  time.Time               `json:"settled_at,omitzero"`
}

func reservationOf(r domain.Reservation) reservationJSON {
	j := reservationJSON{
		ID: r.ID, State: r.State, Lines: make([]lineJSON, len(r.Lines)), CustomerID: r.CustomerID,
		CreatedAt: r.CreatedAt.UTC(), ExpiresAt: r.ExpiresAt.UTC(), SettledAt: r.SettledAt.UTC(),
	}
	for i, l := range r.Lines {
		j.Lines[i] = lineJSON(l)
	}
	return j
}

func (s *server) reserve(c echo.Context) error {
	in, err := decode[struct {
		Quantity   int64   `json:"quantity"`
		CustomerID *string `json:"customer_id,omitempty"`
		TTLSeconds *int64  `json:"ttl_seconds,omitempty"`
	}](c)
	if err != nil {
		return err
	}
	ttl, err := s.ttl(in.TTLSeconds)
	if err != nil {
		return err
	}
	once, err := once(c, orderReply)
	if err != nil {
		return err
	}
	reservation, receipt, err := s.Service.Reserve(c.Request().Context(), callerOf(c), domain.NewReservation{
		SKU: c.Param("sku"), Quantity: in.Quantity, CustomerID: deref(in.CustomerID), TTL: ttl,
	}, once)
	return orderReply(domain.Order{Reservation: reservation}).answer(c, receipt, err)
}

// ttl checks the range before it multiplies: 9223372037 seconds are a negative Duration, and zero would mean the default.
func (s *server) ttl(seconds *int64) (time.Duration, error) {
	if seconds == nil {
		return 0, nil
	}
	if most := int64(s.Service.MaxTTL / time.Second); *seconds < 1 || *seconds > most {
		return 0, domain.Invalid("ttl_seconds", "must be between 1 and %d", most)
	}
	return time.Duration(*seconds) * time.Second, nil
}

func (s *server) reservation(c echo.Context) error {
	reservation, err := s.Service.Reservation(c.Request().Context(), callerOf(c), c.Param("id"))
	if err != nil {
		return err
	}
	body := reservationOf(reservation)
	return tagged(c, digest(body), body)
}

func (s *server) confirm(c echo.Context) error { return settle(c, s.Service.Confirm) }

func (s *server) release(c echo.Context) error { return settle(c, s.Service.Release) }

func settle(c echo.Context,
	use func(context.Context, domain.Caller, string, *domain.Once) (domain.Reservation, domain.Receipt, error),
) error {
	if err := noBody(c); err != nil {
		return err
	}
	render := func(r domain.Reservation) reply { return reply{status: http.StatusOK, body: reservationOf(r)} }
	once, err := once(c, render)
	if err != nil {
		return err
	}
	reservation, receipt, err := use(c.Request().Context(), callerOf(c), c.Param("id"), once)
	return render(reservation).answer(c, receipt, err)
}
