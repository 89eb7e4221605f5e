package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/faas-predict/faas-predict/provider/backend/deployment"
)

// zero measures cold starts: from a call of iris at zero replicas to its answer.
func (b *bench) zero() error {
	const port, starts = 29720, 20
	gateway, err := b.provider(port, "http", "", nil, nil)
	if err != nil {
		return err
	}
	password, err := os.ReadFile(filepath.Join(b.dir, "data-"+strconv.Itoa(port), "admin", "basic-auth-password"))
	if err != nil {
		return err
	}
	at, err := url.Parse(gateway)
	if err != nil {
		return err
	}
	admin := sdk.NewClient(at, &sdk.BasicAuth{Username: "admin", Password: string(password)}, http.DefaultClient)
	ctx := context.Background()
	// The longest time there is: it is the scaling below that makes it zero.
	labels := map[string]string{deployment.ScaleZeroLabel: "true", deployment.ScaleZeroAfterLabel: "24h"}
	if _, err := admin.Update(ctx, types.FunctionDeployment{Service: "iris", Image: "iris", Labels: &labels}); err != nil {
		return fmt.Errorf("label iris: %w", err)
	}
	var took []time.Duration
	for range starts {
		if err := admin.ScaleFunction(ctx, "iris", "", 0); err != nil {
			return fmt.Errorf("scale iris to zero: %w", err)
		}
		time.Sleep(500 * time.Millisecond) // its processes end meanwhile
		began := time.Now()
		res, err := http.Post(gateway+"/function/iris", "text/plain", strings.NewReader(request))
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		took = append(took, time.Since(began))
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("iris at zero replicas answered %s", res.Status)
		}
	}
	slices.Sort(took)
	fmt.Printf("%-74s median %s max %s    %d starts\n", "a call of iris at zero replicas to its answer",
		took[starts/2].Round(time.Millisecond), took[starts-1].Round(time.Millisecond), starts)
	return nil
}
