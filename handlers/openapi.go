package handlers

import (
	_ "embed"
	"net/http"

	"github.com/labstack/echo/v4"
)

// OpenAPI is the contract. It is written by hand; the tests hold the routes, and every answer that they get, to it.
//
//go:embed openapi.yaml
var OpenAPI []byte

func (s *server) openapi(c echo.Context) error {
	if unchanged(c, digest(OpenAPI)) {
		return c.NoContent(http.StatusNotModified)
	}
	return c.Blob(http.StatusOK, "application/yaml", OpenAPI)
}
