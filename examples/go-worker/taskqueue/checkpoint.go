package taskqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// checkpointLimit is the longest checkpoint, in bytes of JSON.
const checkpointLimit = 16 * 1024

// ErrCheckpointNeeded is returned by LastCheckpoint, and is to be returned by the handler, when the
// message is too old to have it: the handler is called again with its last checkpoint, uncounted.
var ErrCheckpointNeeded = errors.New("the last checkpoint has to be asked for: return this error")

// checkpoints are what a handler has saved, and passes on to the operator. Any goroutine may use them.
type checkpoints struct {
	lock  sync.Mutex
	last  json.RawMessage
	known bool
	// save passes one on; nil: nobody keeps it.
	save func(json.RawMessage)
}

type checkpointsKey struct{}

// Checkpoint saves a value for the next start of this Task's handler, anything that encodes as JSON, at
// most 16 KiB; the latest counts. It is on its way on return. Of a direct message nothing is kept.
func Checkpoint(ctx context.Context, value any) error {
	encoded, err := encodeCheckpoint(value)
	if err != nil {
		return err
	}
	c, there := ctx.Value(checkpointsKey{}).(*checkpoints)
	if !there {
		return nil
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	c.last, c.known = encoded, true
	if c.save != nil {
		c.save(encoded)
	}
	return nil
}

// LastCheckpoint returns what was saved last, in this attempt or before it; nil: nothing. Read it first
// of all, and return its error from the handler.
func LastCheckpoint(ctx context.Context) (json.RawMessage, error) {
	c, there := ctx.Value(checkpointsKey{}).(*checkpoints)
	if !there {
		return nil, nil
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	if !c.known {
		return nil, ErrCheckpointNeeded
	}
	return decodeCheckpoint(c.last), nil
}

// encodeCheckpoint returns a checkpoint as it travels: a JSON object. Another value, or an object with
// the single field value, is wrapped, so that what is read is what was saved.
func encodeCheckpoint(value any) (json.RawMessage, error) {
	encoded, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("the checkpoint is not JSON: %w", err)
	}
	if !isObject(encoded) || wrapped(encoded) != nil {
		encoded = append(append([]byte(`{"value":`), encoded...), '}')
	}
	if err := checkExact(encoded, "checkpoint"); err != nil {
		return nil, err
	}
	if len(encoded) > checkpointLimit {
		return nil, fmt.Errorf("the checkpoint has %d bytes of JSON, at most %d are kept: store it elsewhere "+
			"and save where", len(encoded), checkpointLimit)
	}
	return encoded, nil
}

func decodeCheckpoint(encoded json.RawMessage) json.RawMessage {
	if inner := wrapped(encoded); inner != nil {
		return inner
	}
	return encoded
}

// wrapped returns the value of an object that has nothing else, or nil.
func wrapped(encoded json.RawMessage) json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(encoded, &fields) != nil || len(fields) != 1 {
		return nil
	}
	return fields["value"]
}

// saveCheckpoint publishes what the handler of a run saved: one at a time, and of those that wait the
// latest. It is called on the dispatcher's goroutine.
func (r *run) saveCheckpoint(checkpoint json.RawMessage) {
	if r.settled {
		return
	}
	if r.saving {
		r.waitingCheckpoint = checkpoint
		return
	}
	r.saving = true
	event := checkpointEvent(r.message, r.dispatcher.settings.Pod, checkpoint)
	r.dispatcher.report(event, func() {
		r.saving = false
		r.flushCheckpoint()
	})
}

// flushCheckpoint publishes the checkpoint that waits, if any: its turn has come, or the end of the run
// is published next.
func (r *run) flushCheckpoint() {
	if waiting := r.waitingCheckpoint; waiting != nil {
		r.waitingCheckpoint = nil
		r.dispatcher.report(checkpointEvent(r.message, r.dispatcher.settings.Pod, waiting), nil)
	}
}
