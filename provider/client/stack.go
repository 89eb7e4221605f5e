package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/openfaas/faas-provider/types"
	"github.com/openfaas/go-sdk/stack"
	"gopkg.in/yaml.v3"
)

// DeployStack pushes and deploys the functions of the stack file whose names match filter ("" = all).
// A function whose handler is a folder with a bundle is pushed under the name that its image has;
// one without is only deployed. It goes on after a function that fails and returns all failures.
func (c *Client) DeployStack(ctx context.Context, file, filter string, out io.Writer) error {
	services, err := stack.ParseYAMLFile(file, "", filter, true)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if len(services.Functions) == 0 {
		return fmt.Errorf("read %s: it has no functions", file)
	}
	names := make([]string, 0, len(services.Functions))
	for name := range services.Functions {
		names = append(names, name)
	}
	sort.Strings(names)
	var failures []error
	for _, name := range names {
		if err := c.deployFunction(ctx, filepath.Dir(file), name, services.Functions[name], out); err != nil {
			fmt.Fprintf(out, "%s: failed\n", name)
			failures = append(failures, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(failures...)
}

func (c *Client) deployFunction(ctx context.Context, base, name string, f stack.Function, out io.Writer) error {
	spec, err := deployment(base, name, f)
	if err != nil {
		return err
	}
	if f.Handler != "" {
		handler := f.Handler
		if !filepath.IsAbs(handler) {
			handler = filepath.Join(base, handler)
		}
		if info, err := os.Stat(handler); err == nil && info.IsDir() {
			v, err := c.Push(ctx, handler, modelName(f.Image, name), nil)
			if err != nil {
				return err
			}
			v.report(name, out)
		}
	}
	return c.Deploy(ctx, spec, out)
}

// report says which version a function's push gave.
func (v Pushed) report(function string, out io.Writer) {
	what := "pushed"
	if !v.Created {
		what = "unchanged"
	}
	fmt.Fprintf(out, "%s: %s %s\n", function, what, v.ID)
}

// DeployBundle pushes a bundle's folder or zip and deploys it as a function of its name; "" is the bundle's own.
func (c *Client) DeployBundle(ctx context.Context, bundle, name string, progress func(sent, total int64), out io.Writer) error {
	v, err := c.Push(ctx, bundle, name, progress)
	if err != nil {
		return err
	}
	v.report(v.Model, out)
	return c.Deploy(ctx, types.FunctionDeployment{Service: v.Model, Image: v.Model + ":" + v.ID}, out)
}

// Deploy updates the function, or creates it when there is none.
func (c *Client) Deploy(ctx context.Context, spec types.FunctionDeployment, out io.Writer) error {
	status, err := c.SDK().Update(ctx, spec)
	if status == http.StatusNotFound {
		_, err = c.SDK().Deploy(ctx, spec)
	}
	if err != nil {
		return unescaped(err)
	}
	path := spec.Service
	if spec.Namespace != "" {
		path += "." + spec.Namespace
	}
	fmt.Fprintf(out, "%s: deployed at %s/function/%s\n", spec.Service, c.Gateway(), path)
	return nil
}

// unescaped makes the traceback in go-sdk's error, which quotes the answer, readable again.
func unescaped(err error) error {
	before, quoted, found := strings.Cut(err.Error(), `message: "`)
	if !found {
		return err
	}
	var text string
	if yaml.Unmarshal([]byte(`"`+quoted), &text) != nil {
		return err
	}
	return errors.New(before + strings.TrimSpace(text))
}

// modelName is the last part of the image's name, or the function's name.
func modelName(image, function string) string {
	last := image[strings.LastIndex(image, "/")+1:]
	if name, _, _ := strings.Cut(last, ":"); name != "" {
		return name
	}
	return function
}

// deployment is what faas-cli would send for the function.
func deployment(base, name string, f stack.Function) (types.FunctionDeployment, error) {
	spec := types.FunctionDeployment{
		Service:                name,
		Image:                  f.Image,
		Namespace:              f.Namespace,
		EnvProcess:             f.FProcess,
		EnvVars:                map[string]string{},
		Secrets:                f.Secrets,
		Labels:                 f.Labels,
		Annotations:            f.Annotations,
		Limits:                 resources(f.Limits),
		Requests:               resources(f.Requests),
		ReadOnlyRootFilesystem: f.ReadOnlyRootFilesystem,
	}
	if spec.Image == "" {
		spec.Image = name
	}
	if f.Constraints != nil {
		spec.Constraints = *f.Constraints
	}
	for k, v := range f.Environment {
		spec.EnvVars[k] = v
	}
	for _, path := range f.EnvironmentFile {
		if !filepath.IsAbs(path) {
			path = filepath.Join(base, path)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return spec, fmt.Errorf("read environment file: %w", err)
		}
		var file stack.EnvironmentFile
		if err := yaml.Unmarshal(raw, &file); err != nil {
			return spec, fmt.Errorf("read environment file %s: %w", path, err)
		}
		for k, v := range file.Environment {
			spec.EnvVars[k] = v
		}
	}
	return spec, nil
}

func resources(r *stack.FunctionResources) *types.FunctionResources {
	if r == nil {
		return nil
	}
	return &types.FunctionResources{Memory: r.Memory, CPU: r.CPU}
}
