// The worker of the example: three handlers, of which echo also runs messages that name none.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"taskqueue.dev/examples/go-worker/taskqueue"
)

func main() {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	settings, err := taskqueue.SettingsFromEnvironment()
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
	worker := taskqueue.New(settings, log)
	worker.Handle("echo", func(_ context.Context, payload json.RawMessage) (any, error) {
		return payload, nil
	})
	worker.Handle("checksum", checksum)
	worker.Handle("nap", nap)
	worker.HandleDefault("echo")

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := worker.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

// checksum shows a typed payload, and an error that is not retried.
func checksum(_ context.Context, payload json.RawMessage) (any, error) {
	var wanted struct {
		Text *string `json:"text"`
	}
	if err := json.Unmarshal(payload, &wanted); err != nil || wanted.Text == nil {
		return nil, taskqueue.Fail("InvalidPayload", "the payload must have a string in the field text")
	}
	sum := sha256.Sum256([]byte(*wanted.Text))
	return map[string]string{"sha256": hex.EncodeToString(sum[:])}, nil
}

// nap shows a handler that returns when its context ends.
func nap(ctx context.Context, payload json.RawMessage) (any, error) {
	var wanted struct {
		Seconds float64 `json:"seconds"`
	}
	if err := json.Unmarshal(payload, &wanted); err != nil {
		return nil, taskqueue.Fail("InvalidPayload", err.Error())
	}
	select {
	case <-time.After(time.Duration(wanted.Seconds * float64(time.Second))):
		return map[string]string{"pod": os.Getenv("POD_NAME")}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
