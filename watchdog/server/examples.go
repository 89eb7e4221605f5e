package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/pool"
)

// ExamplesError says which of a bundle's examples were not answered as the bundle says, a line each.
type ExamplesError struct {
	Of    int // how many examples there are
	Wrong []string
}

func (e *ExamplesError) Error() string {
	return fmt.Sprintf("%d of %d examples failed:\n%s", len(e.Wrong), e.Of, strings.Join(e.Wrong, "\n"))
}

// CheckExamples asks a model that is up for each of the bundle's examples, one after the other. limit
// bounds each; 0 is none. It returns an *ExamplesError if an answer differs.
func CheckExamples(ctx context.Context, p *pool.Pool, b *model.Bundle, limit time.Duration) error {
	var wrong []string
	for i, example := range b.Examples {
		arrived := time.Now()
		var deadline time.Time
		if limit > 0 {
			deadline = arrived.Add(limit)
		}
		answer, err := p.Do(ctx, []byte(example.Request), "example", arrived, deadline)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			wrong = append(wrong, fmt.Sprintf("example %d: request %q: %v", i+1, example.Request, err))
		case string(answer.Body) != example.Response:
			wrong = append(wrong, fmt.Sprintf("example %d: request %q: expected %q, got %q", i+1, example.Request, example.Response, answer.Body))
		}
	}
	if len(wrong) > 0 {
		return &ExamplesError{Of: len(b.Examples), Wrong: wrong}
	}
	return nil
}
