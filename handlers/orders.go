package handlers

import (
	"errors"
	"net/http"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

type orderJSON struct {
	reservationJSON
	Redemption *redemptionJSON `json:"redemption,omitempty"`
}

// orderReply answers that a hold was made, of one item or of several.
func orderReply(o domain.Order) reply {
	j := orderJSON{reservationJSON: reservationOf(o.Reservation)}
	if o.Redemption != nil {
		redemption := redemptionOf(*o.Redemption)
		j.Redemption = &redemption
	}
	return reply{http.StatusCreated, "/v1/reservations/" + o.ID, j}
}

func (s *server) order(c echo.Context) error {
	in, err := decode[struct {
		Lines      []lineJSON `json:"lines"`
		Coupon     *string    `json:"coupon,omitempty"`
		CustomerID *string    `json:"customer_id,omitempty"`
		TTLSeconds *int64     `json:"ttl_seconds,omitempty"`
	}](c)
	if err != nil {
		return err
	}
	coupon, err := filled("coupon", in.Coupon)
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
	lines := make([]domain.Line, len(in.Lines))
	for i, l := range in.Lines {
		lines[i] = domain.Line(l)
	}
	order, receipt, err := s.Service.Order(c.Request().Context(), callerOf(c), domain.NewOrder{
		Lines: lines, Coupon: coupon, CustomerID: deref(in.CustomerID), TTL: ttl,
	}, once)
	if errors.Is(err, domain.ErrCouponExpired) {
		return err // without a stamp, as redeem has it
	}
	return orderReply(order).answer(c, receipt, err)
}
