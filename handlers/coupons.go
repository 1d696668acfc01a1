package handlers

import (
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

type couponJSON struct {
	Code             string    `json:"code"`
	MaxRedemptions   int64     `json:"max_redemptions"`
	PerCustomerLimit int64     `json:"per_customer_limit,omitempty"`
	ValidFrom        time.Time `json:"valid_from,omitzero"`
	ValidUntil       time.Time `json:"valid_until,omitzero"`
	Redeemed         int64     `json:"redeemed"`
	fenceJSON
}

func couponOf(v domain.CouponView) couponJSON {
	return couponJSON{
		Code: v.Code, MaxRedemptions: v.MaxRedemptions, PerCustomerLimit: v.PerCustomerLimit,
		ValidFrom: v.ValidFrom.UTC(), ValidUntil: v.ValidUntil.UTC(), Redeemed: v.Redeemed,
		fenceJSON: fenceOf(v.Fence),
	}
}

func (s *server) createCoupon(c echo.Context) error {
	in, err := decode[struct {
		Code             *string    `json:"code,omitempty"`
		MaxRedemptions   int64      `json:"max_redemptions"`
		PerCustomerLimit *int64     `json:"per_customer_limit,omitempty"`
		ValidFrom        *time.Time `json:"valid_from,omitempty"`
		ValidUntil       *time.Time `json:"valid_until,omitempty"`
		Lock             *lockInput `json:"lock,omitempty"`
	}](c)
	if err != nil {
		return err
	}
	// The domain takes zero for "no limit" and "for ever"; somebody who writes zero has meant something else.
	if in.PerCustomerLimit != nil && *in.PerCustomerLimit == 0 {
		return domain.Invalid("per_customer_limit", "must be between 1 and %d", domain.MaxStock)
	}
	if in.ValidFrom != nil && in.ValidFrom.IsZero() {
		return domain.Invalid("valid_from", "must be later than the year 1")
	}
	if in.ValidUntil != nil && in.ValidUntil.IsZero() {
		return domain.Invalid("valid_until", "must be later than the year 1")
	}
	code, err := filled("code", in.Code)
	if err != nil {
		return err
	}
	strategy, fencing, err := in.Lock.spec()
	if err != nil {
		return err
	}
	render := func(coupon domain.CouponView) reply {
		return reply{http.StatusCreated, "/v1/coupons/" + coupon.Code, couponOf(coupon)}
	}
	once, err := once(c, render)
	if err != nil {
		return err
	}
	coupon, err := s.Service.CreateCoupon(c.Request().Context(), domain.NewCoupon{
		Code: code, MaxRedemptions: in.MaxRedemptions, PerCustomerLimit: deref(in.PerCustomerLimit),
		ValidFrom: deref(in.ValidFrom), ValidUntil: deref(in.ValidUntil),
		Strategy: strategy, Fencing: fencing,
	}, once)
	return render(coupon).answer(c, domain.Receipt{}, err)
}

func (s *server) coupon(c echo.Context) error {
	coupon, err := s.Service.Coupon(c.Request().Context(), c.Param("code"))
	if err != nil {
		return err
	}
	body := couponOf(coupon)
	return tagged(c, digest(body), body)
}

type redemptionJSON struct {
	ID            string                 `json:"id"`
	Code          string                 `json:"code"`
	CustomerID    string                 `json:"customer_id"`
	ReservationID string                 `json:"reservation_id,omitempty"`
	State         domain.RedemptionState `json:"state"`
	CreatedAt     time.Time              `json:"created_at"`
	SettledAt     time.Time              `json:"settled_at,omitzero"`
}

func redemptionOf(r domain.Redemption) redemptionJSON {
	return redemptionJSON{
		ID: r.ID, Code: r.Code, CustomerID: r.CustomerID, ReservationID: r.ReservationID, State: r.State,
		CreatedAt: r.CreatedAt.UTC(), SettledAt: r.SettledAt.UTC(),
	}
}

func (s *server) redeem(c echo.Context) error {
	in, err := decode[struct {
		CustomerID    string  `json:"customer_id"`
		ReservationID *string `json:"reservation_id,omitempty"`
	}](c)
	if err != nil {
		return err
	}
	reservation, err := filled("reservation_id", in.ReservationID)
	if err != nil {
		return err
	}
	render := func(r domain.Redemption) reply { // no Location: a redemption cannot be read back
		return reply{status: http.StatusCreated, body: redemptionOf(r)}
	}
	once, err := once(c, render)
	if err != nil {
		return err
	}
	redemption, receipt, err := s.Service.Redeem(c.Request().Context(), callerOf(c), domain.NewRedemption{
		Code: c.Param("code"), CustomerID: in.CustomerID, ReservationID: reservation,
	}, once)
	if errors.Is(err, domain.ErrCouponExpired) {
		return err // without a stamp: a token would tell that the code is real, only not valid now
	}
	return render(redemption).answer(c, receipt, err)
}

func (s *server) rollback(c echo.Context) error {
	if err := noBody(c); err != nil {
		return err
	}
	render := func(r domain.Redemption) reply { return reply{status: http.StatusOK, body: redemptionOf(r)} }
	once, err := once(c, render)
	if err != nil {
		return err
	}
	redemption, receipt, err := s.Service.Rollback(c.Request().Context(), callerOf(c), c.Param("id"), once)
	return render(redemption).answer(c, receipt, err)
}
