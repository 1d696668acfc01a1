package main

import (
	"bytes"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// No test can start the containers, because not every machine has an engine for them. These hold the file against what the
// service reads, and against itself.

const composeFile = "../../docker-compose.yml"

// composePasswords are what .env has to hold.
var composePasswords = []string{"ADMIN_PASSWORD=aaaa1111", "OWNER_PASSWORD=bbbb2222", "SERVICE_PASSWORD=cccc3333"}

func loadCompose(t *testing.T, env []string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{composeFile}, cli.WithEnv(env))
	require.NoError(t, err)
	return options.LoadProject(t.Context())
}

func compose(t *testing.T) *types.Project {
	t.Helper()
	project, err := loadCompose(t, composePasswords)
	require.NoError(t, err)
	return project
}

// The services of each kind.
var (
	composeInstances = []string{"fencepost-1", "fencepost-2", "fencepost-3"}
	composeServers   = []string{
		"postgres", "redis-1", "redis-2", "redis-3", "redis-4", "redis-5", "zookeeper-1", "zookeeper-2", "zookeeper-3",
	}
)

func TestComposeServices(t *testing.T) {
	project := compose(t)
	want := slices.Sorted(slices.Values(slices.Concat(composeInstances, composeServers, []string{"migrate"})))
	assert.Equal(t, want, slices.Sorted(maps.Keys(project.Services)))
	for _, name := range composeServers {
		service := project.Services[name]
		require.NotNil(t, service.HealthCheck, name)
		assert.NotEmpty(t, service.HealthCheck.Test, name)
		assert.Equal(t, []string{"servers"}, slices.Collect(maps.Keys(service.Networks)), name)
		assert.NotEmpty(t, service.Volumes, "%s forgets its data", name)
	}
	assert.True(t, bool(project.Networks["servers"].Internal), "the servers can be reached from outside")
	for i := range 5 {
		command := strings.Join(project.Services[composeServers[1+i]].Command, " ")
		assert.Contains(t, command, "--maxmemory-policy noeviction")
	}
}

func TestComposePublishesOnLoopbackOnly(t *testing.T) {
	var published []string
	for name, service := range compose(t).Services {
		for _, port := range service.Ports {
			assert.Equal(t, "127.0.0.1", port.HostIP, name)
			assert.Contains(t, composeInstances, name)
			published = append(published, "http://"+net.JoinHostPort(port.HostIP, port.Published))
			assert.EqualValues(t, 8080, port.Target, name)
		}
	}
	slices.Sort(published)
	assert.Len(t, published, len(composeInstances))
	for _, name := range composeInstances {
		instances := *compose(t).Services[name].Environment["FENCEPOST_INSTANCES"]
		assert.Equal(t, published, strings.Split(instances, ","), "%s tells pages other addresses than the published ones", name)
	}
}

func TestComposeWaitsForWhatItNeeds(t *testing.T) {
	project := compose(t)
	for _, name := range composeInstances {
		needs := project.Services[name].DependsOn
		for _, server := range composeServers {
			assert.Equal(t, types.ServiceConditionHealthy, needs[server].Condition, "%s on %s", name, server)
		}
		assert.Equal(t, types.ServiceConditionCompletedSuccessfully, needs["migrate"].Condition, name)
	}
	assert.Equal(t, types.ServiceConditionHealthy, project.Services["migrate"].DependsOn["postgres"].Condition)
}

func TestComposeImagesArePinned(t *testing.T) {
	pinned := regexp.MustCompile(`^[a-z]+:\d+\.\d+(\.\d+)?(-[a-z]+)?$`)
	for name, service := range compose(t).Services {
		if service.Build == nil {
			assert.Regexp(t, pinned, service.Image, name)
		}
	}
	dockerfile, err := os.ReadFile("../../Dockerfile")
	require.NoError(t, err)
	stages := regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllSubmatch(dockerfile, -1)
	require.Len(t, stages, 2)
	assert.Regexp(t, pinned, string(stages[0][1]))
	assert.Equal(t, "scratch", string(stages[1][1]))
	assert.Regexp(t, `(?m)^USER [1-9]\d*:[1-9]\d*$`, string(dockerfile), "the service runs as root")
}

func TestComposeHasNoPasswordOfItsOwn(t *testing.T) {
	for i := range composePasswords {
		name, _, _ := strings.Cut(composePasswords[i], "=")
		_, err := loadCompose(t, slices.Delete(slices.Clone(composePasswords), i, i+1))
		assert.ErrorContains(t, err, name, "it starts without %s", name)
	}
	for name, service := range compose(t).Services {
		for variable, value := range service.Environment {
			if strings.Contains(variable, "PASSWORD") {
				assert.Contains(t, []string{"aaaa1111", "bbbb2222", "cccc3333"}, *value, "%s %s", name, variable)
			}
			u, err := url.Parse(*value)
			if err != nil || u.User == nil {
				continue
			}
			password, _ := u.User.Password()
			want := map[string]string{"fencepost_owner": "bbbb2222", "fencepost_service": "cccc3333"}[u.User.Username()]
			assert.Equal(t, want, password, "%s %s", name, variable)
			assert.Equal(t, u.User.Username() == "fencepost_owner", name == "migrate", "only migrate is the owner, not %s", name)
		}
	}
	roles := compose(t).Configs["roles"].Content
	assert.Contains(t, roles, "CREATE ROLE fencepost_owner LOGIN PASSWORD :'owner'")
	assert.Contains(t, roles, "CREATE ROLE fencepost_service LOGIN PASSWORD :'service'")
}

// The service itself is asked whether it would start with what the file gives it.
func TestComposeConfiguresTheService(t *testing.T) {
	project := compose(t)
	known := configVariables()
	for name, service := range project.Services {
		for variable, value := range service.Environment {
			if !strings.HasPrefix(variable, "FENCEPOST_") {
				continue
			}
			assert.Contains(t, known, variable, "%s sets a variable that the service does not read", name)
			for _, host := range hosts(variable, *value) {
				assert.Contains(t, project.Services, host, "%s of %s leads nowhere", variable, name)
			}
		}
	}
	for _, variable := range known {
		t.Setenv(variable, "") // kong takes an empty variable for a set one
		require.NoError(t, os.Unsetenv(variable))
	}
	for variable, value := range project.Services["fencepost-1"].Environment {
		t.Setenv(variable, *value)
	}
	var stdout, stderr bytes.Buffer
	assert.Equal(t, exitOK, run(t.Context(), []string{"config"}, &stdout, &stderr), stderr.String())
	assert.NotContains(t, stdout.String(), "cccc3333")
	for _, name := range composeInstances {
		assert.Equal(t, project.Services["fencepost-1"].Environment, project.Services[name].Environment, "the instances differ")
	}
}

// hosts are the servers that the value of a variable leads to.
func hosts(variable, value string) (hosts []string) {
	if variable == "FENCEPOST_INSTANCES" || variable == "FENCEPOST_LISTEN" {
		return nil
	}
	for part := range strings.SplitSeq(value, ",") {
		if u, err := url.Parse(part); err == nil && u.Host != "" {
			hosts = append(hosts, u.Hostname())
		} else if host, _, err := net.SplitHostPort(part); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

func TestComposeEnsembleIsOne(t *testing.T) {
	project := compose(t)
	seen := map[string]bool{}
	for _, name := range composeServers[6:] {
		env := project.Services[name].Environment
		seen[*env["ZOO_MY_ID"]] = true
		for _, other := range composeServers[6:] {
			assert.Contains(t, *env["ZOO_SERVERS"], "="+other+":2888:3888;2181", name)
		}
		assert.Contains(t, *env["ZOO_SERVERS"], "server."+*env["ZOO_MY_ID"]+"="+name+":", name)
	}
	assert.Len(t, seen, 3, "two servers have one id")
}

// What is not on the list does not reach the build; a package that is missing there would break it.
func TestDockerBuildGetsEveryPackage(t *testing.T) {
	ignore, err := os.ReadFile("../../.dockerignore")
	require.NoError(t, err)
	lines := strings.Split(string(ignore), "\n")
	assert.Contains(t, lines, "*")
	folders, err := os.ReadDir("../..")
	require.NoError(t, err)
	for _, folder := range folders {
		files, _ := filepath.Glob(filepath.Join("../..", folder.Name(), "*.go"))
		deeper, _ := filepath.Glob(filepath.Join("../..", folder.Name(), "*", "*.go"))
		if folder.IsDir() && len(files)+len(deeper) > 0 {
			assert.Contains(t, lines, "!"+folder.Name())
		}
	}
}
