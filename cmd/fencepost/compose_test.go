package main

import (
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
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

func compose(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{composeFile}, cli.WithEnv(nil), cli.WithProfiles([]string{"*"}))
	require.NoError(t, err)
	project, err := options.LoadProject(t.Context())
	require.NoError(t, err)
	return project
}

// The services of each kind.
var (
	composeInstances = []string{"fencepost-1", "fencepost-2", "fencepost-3"}
	composeServers   = []string{
		"postgres", "redis-1", "redis-2", "redis-3", "redis-4", "redis-5", "zookeeper-1", "zookeeper-2", "zookeeper-3",
	}
	composeWatchers = []string{"prometheus", "grafana", "otel-collector"}
)

func TestComposeServices(t *testing.T) {
	project := compose(t)
	profiles := map[string][]string{} // the services that are there without one, and what each profile adds
	for name, service := range project.Services {
		require.LessOrEqual(t, len(service.Profiles), 1, name)
		profile := strings.Join(service.Profiles, "")
		profiles[profile] = append(profiles[profile], name)
	}
	assert.Len(t, profiles, 3)
	assert.ElementsMatch(t, append([]string{"postgres", "migrate", "haproxy"}, composeInstances...), profiles[""])
	assert.ElementsMatch(t, composeServers[1:], profiles["full"])
	assert.ElementsMatch(t, composeWatchers, profiles["observability"])
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
	taken := map[string]string{}
	for name, service := range compose(t).Services {
		for _, port := range service.Ports {
			assert.Equal(t, "127.0.0.1", port.HostIP, name)
			assert.NotContains(t, composeServers, name)
			assert.NotContains(t, taken, port.Published, name)
			taken[port.Published] = name
			if slices.Contains(composeInstances, name) {
				published = append(published, "http://"+net.JoinHostPort(port.HostIP, port.Published))
				assert.EqualValues(t, 8080, port.Target, name)
			}
		}
	}
	assert.Equal(t, "haproxy", taken["8080"])
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
			assert.Equal(t, project.Services[server].Profiles == nil, needs[server].Required, "%s on %s", name, server)
		}
		assert.Equal(t, types.ServiceConditionCompletedSuccessfully, needs["migrate"].Condition, name)
	}
	assert.Equal(t, types.ServiceConditionHealthy, project.Services["migrate"].DependsOn["postgres"].Condition)
}

func TestComposeImagesArePinned(t *testing.T) {
	pinned := regexp.MustCompile(`^[a-z/-]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?$`)
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

// makeSecrets runs the lines at the head of the file that make the passwords.
func makeSecrets(t *testing.T) (folder string) {
	t.Helper()
	text, err := os.ReadFile(composeFile)
	require.NoError(t, err)
	lines := regexp.MustCompile(`(?m)^#   mkdir (?:.*\n#   .*)+`).Find(text)
	require.NotNil(t, lines)
	folder = t.TempDir()
	shell := exec.CommandContext(t.Context(), "bash", "-euc", regexp.MustCompile(`(?m)^#`).ReplaceAllString(string(lines), ""))
	shell.Dir = folder
	output, err := shell.CombinedOutput()
	require.NoError(t, err, string(output))
	return folder
}

func TestComposeHasNoPasswordOfItsOwn(t *testing.T) {
	folder := makeSecrets(t)
	info, err := os.Stat(filepath.Join(folder, "secrets"))
	require.NoError(t, err)
	assert.EqualValues(t, 0o700, info.Mode().Perm(), "anybody may read the passwords")
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(folder, "secrets", name))
		require.NoError(t, err)
		return strings.TrimSpace(string(text))
	}
	passwords := map[string]bool{}
	for _, name := range []string{"admin", "owner", "service", "grafana"} {
		assert.Regexp(t, `^[0-9a-f]{48}$`, read(name))
		passwords[read(name)] = true
	}
	assert.Len(t, passwords, 4, "two of them are one")
	for _, who := range []string{"owner", "service"} {
		u, err := url.Parse(read(who + "_url"))
		require.NoError(t, err)
		assert.Equal(t, "fencepost_"+who+":"+read(who), u.User.String())
		assert.Contains(t, compose(t).Services, u.Hostname())
	}

	project := compose(t)
	for name, secret := range project.Secrets {
		assert.Equal(t, filepath.Join("secrets", name), relative(t, secret.File))
		_ = read(name)
	}
	for name, service := range project.Services {
		for variable, value := range service.Environment {
			if strings.Contains(variable, "PASSWORD") {
				assert.Regexp(t, "_FILE$", variable, name)
			}
			if strings.HasSuffix(variable, "_FILE") {
				assert.True(t, slices.ContainsFunc(service.Secrets, func(s types.ServiceSecretConfig) bool {
					return *value == "/run/secrets/"+s.Source
				}), "%s has no %s", name, *value)
			}
			u, err := url.Parse(*value)
			assert.True(t, err != nil || u.User == nil, "%s has a password in %s", name, variable)
		}
		for _, secret := range service.Secrets {
			assert.Equal(t, secret.Source == "owner_url", name == "migrate", "only migrate is the owner, not %s", name)
		}
	}
	roles := project.Configs["roles"].Content
	assert.Contains(t, roles, "\\set owner `cat /run/secrets/owner`")
	assert.Contains(t, roles, "\\set service `cat /run/secrets/service`")
	assert.Contains(t, roles, "CREATE ROLE fencepost_owner LOGIN PASSWORD :'owner'")
	assert.Contains(t, roles, "CREATE ROLE fencepost_service LOGIN PASSWORD :'service'")
	ignored, err := os.ReadFile("../../.gitignore")
	require.NoError(t, err)
	assert.Contains(t, strings.Split(string(ignored), "\n"), "/secrets/")
}

// relative is a path that the file names, as it stands there.
func relative(t *testing.T, path string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	name, err := filepath.Rel(root, path)
	require.NoError(t, err)
	return name
}

// What is shipped in deploy/ is there, and the balancer and Prometheus know the instances by the names that they have.
func TestComposeFiles(t *testing.T) {
	project := compose(t)
	shipped := map[string]bool{}
	exists := func(path string) {
		shipped[relative(t, path)] = true
		_, err := os.Stat(path)
		assert.NoError(t, err)
	}
	for _, config := range project.Configs {
		if config.File != "" {
			exists(config.File)
		}
	}
	for name, service := range project.Services {
		for _, volume := range service.Volumes {
			if volume.Type == types.VolumeTypeBind {
				exists(volume.Source)
				assert.True(t, volume.ReadOnly, name)
			}
		}
	}
	for _, path := range []string{"deploy/haproxy.cfg", "deploy/otel-collector.yml", "deploy/prometheus", "deploy/grafana/dashboards"} {
		assert.True(t, shipped[path], path)
	}
	for _, file := range []string{"../../deploy/haproxy.cfg", "../../deploy/prometheus/prometheus.yml"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, instance := range composeInstances {
			assert.Contains(t, string(text), instance+":8080", file)
		}
	}
	prometheus, err := os.ReadFile("../../deploy/prometheus/prometheus.yml")
	require.NoError(t, err)
	assert.Contains(t, string(prometheus), "/run/secrets/"+project.Services["prometheus"].Secrets[0].Target)
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
	secrets := filepath.Join(makeSecrets(t), "secrets")
	env := map[string]string{}
	for variable, value := range project.Services["fencepost-1"].Environment {
		env[variable] = strings.Replace(*value, "/run/secrets", secrets, 1)
	}
	code, stdout, stderr := runIn(t, env, "config")
	assert.Equal(t, exitOK, code, stderr)
	password, err := os.ReadFile(filepath.Join(secrets, "service"))
	require.NoError(t, err)
	assert.NotContains(t, stdout, strings.TrimSpace(string(password)))
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
