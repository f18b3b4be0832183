// The worker that tests/conformance tests: the library with the handlers that
// tests/conformance/README.md asks for.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"taskqueue.dev/examples/go-worker/taskqueue"
)

// wanted is the payload of every handler.
type wanted struct {
	Steps   int     `json:"steps"`
	Trace   string  `json:"trace"`
	Seconds float64 `json:"seconds"`
	Type    string  `json:"type"`
	Message string  `json:"message"`
	Linger  float64 `json:"linger"`
}

func main() {
	settings, err := taskqueue.SettingsFromEnvironment()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	worker := taskqueue.New(settings, slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	for name, handler := range map[string]taskqueue.Handler{
		"echo":          echo,
		"sleep":         sleep,
		"deaf":          deaf,
		"burn":          burn,
		"fail":          fail,
		"fail-for-good": failForGood,
		"snooze":        snooze,
		"fail-as":       failAs,
		"steps":         steps,
	} {
		worker.Handle(name, traced(handler))
	}
	worker.HandleDefault("echo")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := worker.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func echo(_ context.Context, payload json.RawMessage) (any, error) { return payload, nil }

func sleep(ctx context.Context, payload json.RawMessage) (any, error) {
	w := read(payload)
	select {
	case <-time.After(seconds(w.Seconds)):
		return nil, nil
	case <-ctx.Done():
		time.Sleep(seconds(w.Linger))
		return nil, ctx.Err()
	}
}

func deaf(_ context.Context, payload json.RawMessage) (any, error) {
	time.Sleep(seconds(read(payload).Seconds))
	return nil, nil
}

func burn(_ context.Context, payload json.RawMessage) (any, error) {
	for end := time.Now().Add(seconds(read(payload).Seconds)); time.Now().Before(end); {
	}
	return nil, nil
}

func fail(context.Context, json.RawMessage) (any, error) {
	return nil, errors.New("broken, as asked")
}

func failForGood(context.Context, json.RawMessage) (any, error) {
	return nil, taskqueue.Fail("Broken", "broken for good, as asked")
}

func snooze(_ context.Context, payload json.RawMessage) (any, error) {
	return nil, taskqueue.Snooze(seconds(read(payload).Seconds))
}

// steps saves the number of each step when it is done, and returns the number of the first.
func steps(ctx context.Context, payload json.RawMessage) (any, error) {
	last, err := taskqueue.LastCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	var done struct {
		Step int `json:"step"`
	}
	if last != nil {
		if err := json.Unmarshal(last, &done); err != nil {
			return nil, err
		}
	}
	w := read(payload)
	for step := done.Step + 1; step <= w.Steps; step++ {
		time.Sleep(seconds(w.Seconds))
		if err := taskqueue.Checkpoint(ctx, map[string]int{"step": step}); err != nil {
			return nil, err
		}
	}
	return map[string]int{"first": done.Step + 1}, nil
}

func failAs(_ context.Context, payload json.RawMessage) (any, error) {
	w := read(payload)
	return nil, taskqueue.Fail(w.Type, w.Message)
}

// traced records the beginning and the end of each run in the file that the payload names.
func traced(handler taskqueue.Handler) taskqueue.Handler {
	return func(ctx context.Context, payload json.RawMessage) (any, error) {
		trace := read(payload).Trace
		note(trace, "begin")
		defer note(trace, "end")
		return handler(ctx, payload)
	}
}

func note(trace, word string) {
	if trace == "" {
		return
	}
	file, err := os.OpenFile(trace, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	fmt.Fprintf(file, "%s %d\n", word, os.Getpid())
}

func read(payload json.RawMessage) wanted {
	var w wanted
	if err := json.Unmarshal(payload, &w); err != nil {
		panic(err)
	}
	return w
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
