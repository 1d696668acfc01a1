package postgres_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"fencepost/domain"
	"fencepost/domain/postgres"
)

// Whatever a server answers, or something that stands before it, an error is an error.
func FuzzServerErrors(f *testing.F) {
	const detail = `{"resource":"item/lamp","presented_strategy":"redis","presented_epoch":"1","presented_token":"2","current_epoch":"1","current_token":"3","current_grant":"019ca95d-1a00-7c3e-8d1f-2a3b4c5d6e7f"}`
	for _, code := range []string{"FP001", "FP002", "FP005", "FP006", "40001", "57014", "08006", "0", ""} {
		f.Add(code, detail)
	}
	f.Add("FP001", `{"presented_token":"9223372036854775808","current_grant":null}`)
	f.Add("FP001", `{"presented_token":7}`)
	f.Add("FP001", ``)
	f.Fuzz(func(t *testing.T, code, detail string) {
		err := postgres.Plain(&pgconn.PgError{Severity: "ERROR", Code: code, Message: "no", Detail: detail})
		if err == nil {
			t.Errorf("%q %q is no error", code, detail)
		}
		var refused *domain.RefusedError
		if errors.As(err, &refused) && !errors.Is(err, domain.ErrStaleToken) && !errors.Is(err, domain.ErrSuperseded) && !errors.Is(err, domain.ErrFencingRequired) {
			t.Errorf("%q %q is refused without a reason", code, detail)
		}
	})
}
