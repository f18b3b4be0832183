package taskqueue

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestCheckpointIsReadAsItWasSaved(t *testing.T) {
	for _, value := range []string{`{"step":1}`, `{"value":1}`, `{"value":{"value":2}}`, `3`, `"x"`, `[1]`, `null`, `{}`} {
		encoded, err := encodeCheckpoint(json.RawMessage(value))
		if err != nil {
			t.Fatal(err)
		}
		if !isObject(encoded) {
			t.Errorf("%s travels as %s, which is no object", value, encoded)
		}
		if read := decodeCheckpoint(encoded); string(read) != value {
			t.Errorf("%s is read as %s", value, read)
		}
	}
}

func TestLargeCheckpointIsRefused(t *testing.T) {
	if _, err := encodeCheckpoint(strings.Repeat("x", checkpointLimit)); err == nil {
		t.Error("it is accepted")
	}
}

func TestHandlerThatNeedsItsCheckpointIsReleased(t *testing.T) {
	ctx := context.WithValue(context.Background(), checkpointsKey{}, &checkpoints{})
	handler := func(ctx context.Context, _ json.RawMessage) (any, error) {
		_, err := LastCheckpoint(ctx)
		return nil, err
	}
	if end := call(ctx, handler, nil); !end.released || end.error != nil {
		t.Errorf("it ended as %+v", end)
	}
	if err := Checkpoint(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := LastCheckpoint(ctx); errors.Is(err, ErrCheckpointNeeded) {
		t.Error("what it saved itself is not known")
	}
}
