package taskqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"
)

// Handler runs one attempt. The context ends when the result is no longer wanted: return soon then;
// what is returned after that does not count. The result is anything that encodes as a JSON object,
// or nil; any other value arrives as {"value": …}. A Binary is bytes, for the store of the TaskQueue.
type Handler func(ctx context.Context, payload json.RawMessage) (any, error)

// Attempt is what a handler can learn about its attempt, by AttemptOf.
type Attempt struct {
	// Task is namespace/name; of a direct message namespace/queue.
	Task string
	// UID is that of the Task; of a direct message its correlation id.
	UID         string
	Number      int64
	MaxAttempts int64
	// Fence is of a Task with a concurrency key, else nil: a number that grows with every dispatch
	// of the key. Pass it on to the storage that is written to.
	Fence *int64
}

type attemptKey struct{}

// AttemptOf returns the attempt a handler's context belongs to.
func AttemptOf(ctx context.Context) Attempt {
	attempt, _ := ctx.Value(attemptKey{}).(Attempt)
	return attempt
}

// failure is an error that says more than that the attempt failed.
type failure struct {
	kind       string
	message    string
	retryable  bool
	retryAfter time.Duration
}

func (f *failure) Error() string { return f.message }

// Fail is an error that no other attempt helps against. The type is a word for machines.
func Fail(kind, message string) error { return &failure{kind: kind, message: message} }

// Retry is an error that wishes for another attempt after a time.
func Retry(message string, after time.Duration) error {
	return &failure{kind: "Retry", message: message, retryable: true, retryAfter: after}
}

// longestSnooze is the longest time accepted by Snooze.
const longestSnooze = 30 * 24 * time.Hour

// snooze is an error that is no failure.
type snooze struct{ after time.Duration }

func (s *snooze) Error() string { return "the handler asked to be called again in " + s.after.String() }

// Snooze is returned by a handler to be called again after a time, up to 30 days. It costs no attempt.
// A direct message cannot be snoozed: it fails.
func Snooze(after time.Duration) error {
	return &snooze{after: min(max(after, 0), longestSnooze)}
}

// call runs a handler to its end, whatever that is.
func call(ctx context.Context, handler Handler, payload json.RawMessage) (end ending) {
	began := time.Now()
	defer func() {
		if reason := recover(); reason != nil {
			end = ending{error: newError("Panic", fmt.Sprint(reason), true)}
		}
		end.took = time.Since(began)
	}()
	result, err := handler(ctx, payload)
	var put *snooze
	if errors.As(err, &put) {
		return ending{snooze: &put.after}
	}
	if errors.Is(err, ErrCheckpointNeeded) {
		return ending{released: true}
	}
	if err != nil {
		return ending{error: describe(err), retryAfter: wishedPause(err)}
	}
	return encodeResult(result)
}

func encodeResult(result any) ending {
	if result == nil {
		return ending{}
	}
	if bytes, is := result.(Binary); is {
		return binaryResult(bytes)
	}
	encoded, err := json.Marshal(result)
	if err != nil {
		return ending{error: newError("InvalidResult", "the result is not JSON: "+err.Error(), false)}
	}
	if string(encoded) == "null" {
		return ending{}
	}
	if !isObject(encoded) {
		encoded = append(append([]byte(`{"value":`), encoded...), '}')
	}
	if err := checkExact(encoded, "result"); err != nil {
		return ending{error: newError("InvalidResult", err.Error(), false)}
	}
	if len(encoded) > resultLimit {
		return forStore(encoded, jsonType)
	}
	return ending{result: encoded}
}

func describe(err error) *eventError {
	var known *failure
	if errors.As(err, &known) {
		return applicationError(known.kind, err.Error(), known.retryable)
	}
	return applicationError(typeName(err), err.Error(), true)
}

func wishedPause(err error) time.Duration {
	var known *failure
	if errors.As(err, &known) {
		return known.retryAfter
	}
	return 0
}

// typeName is a word for an error: the name of its type, where it has one that says something.
func typeName(err error) string {
	kind := reflect.TypeOf(err)
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	switch name := kind.Name(); name {
	case "", "errorString", "wrapError", "wrapErrors", "joinError":
		return "Error"
	default:
		return name
	}
}

// applicationError is an error of the handler's code: its type says nothing to the operator.
func applicationError(kind, message string, retryable bool) *eventError {
	for strings.HasPrefix(kind, reservedPrefix) {
		kind = strings.TrimPrefix(kind, reservedPrefix)
	}
	described := newError(cutText(strings.ToValidUTF8(kind, "?"), typeLimit), message, retryable)
	described.Application = true
	return described
}

// newError is an error that the worker has found.
func newError(kind, message string, retryable bool) *eventError {
	message = cutText(strings.ToValidUTF8(message, string(utf8.RuneError)), messageLimit)
	return &eventError{Type: kind, Message: message, Retryable: retryable}
}
