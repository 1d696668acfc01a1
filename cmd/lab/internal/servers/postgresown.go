package servers

import (
	"context"
	"errors"
	"path/filepath"
)

// OwnPostgres is a PostgreSQL for one test alone, set up like the laboratory's.
type OwnPostgres struct {
	*Server
	lab     *Lab
	cluster cluster
}

// Certificate is what a server shows to those who speak TLS with it, in PEM.
type Certificate struct{ Cert, Key []byte }

// StartPostgres starts one beside the laboratory's own, under a name that must be unused. With a certificate the roles of the
// service and of the owner can reach it by TLS alone.
func (l *Lab) StartPostgres(ctx context.Context, name string, certificate *Certificate) (*OwnPostgres, error) {
	bin, ok := l.findPostgres()
	if !ok {
		return nil, errors.New("there is no PostgreSQL to start: " + mend)
	}
	c, err := l.initdb(ctx, name, bin)
	if err != nil {
		return nil, err
	}
	var settings []string
	if certificate != nil {
		settings = []string{"ssl=on"}
		if err := errors.Join(
			l.writeConfig(filepath.Join(c.data, "server.crt"), []string{string(certificate.Cert)}),
			l.writeConfig(filepath.Join(c.data, "server.key"), []string{string(certificate.Key)}),
			l.writeConfig(filepath.Join(c.data, "pg_hba.conf"), []string{
				"host all " + superuser + " 127.0.0.1/32 scram-sha-256",
				"hostssl all all 127.0.0.1/32 scram-sha-256",
			})); err != nil {
			return nil, err
		}
	}
	s, err := l.launchPostgres(ctx, name, c, settings...)
	if err != nil {
		return nil, err
	}
	s.env, err = setUpPostgres(ctx, s, c)
	return &OwnPostgres{Server: s, lab: l, cluster: c}, err
}

// StartStandby starts a standby under a name that must be unused. It knows what the server knows now, and hears nothing of what
// comes later: as far behind as a standby can be. The server is restarted.
func (p *OwnPostgres) StartStandby(ctx context.Context, name string) (*Server, error) {
	dir, err := p.lab.privateDir(name)
	if err != nil {
		return nil, err
	}
	copied := cluster{bin: p.cluster.bin, dir: dir, data: filepath.Join(dir, "data"), admin: p.cluster.admin}
	if err := p.Stop(ctx); err != nil {
		return nil, err
	}
	if err := errors.Join(
		p.lab.tool(ctx, dir, "cp", "-a", p.cluster.data, copied.data),
		p.lab.writeConfig(filepath.Join(copied.data, "standby.signal"), nil),
		p.Start(ctx)); err != nil {
		return nil, err
	}
	return p.lab.launchPostgres(ctx, name, copied)
}
