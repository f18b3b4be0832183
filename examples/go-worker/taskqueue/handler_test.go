package taskqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func ends(result any, err error) ending {
	return call(context.Background(), func(context.Context, json.RawMessage) (any, error) {
		return result, err
	}, nil)
}

func TestResults(t *testing.T) {
	for _, each := range []struct {
		result any
		want   string
	}{
		{nil, ""},
		{json.RawMessage(nil), ""},
		{json.RawMessage(`{"a":1}`), `{"a":1}`},
		{map[string]int{"a": 1}, `{"a":1}`},
		{7, `{"value":7}`},
		{[]string{"a"}, `{"value":["a"]}`},
	} {
		end := ends(each.result, nil)
		if end.error != nil || string(end.result) != each.want {
			t.Errorf("%v: %s, error %v", each.result, end.result, end.error)
		}
	}
}

func TestResultsThatCannotBeKept(t *testing.T) {
	for kind, result := range map[string]any{
		"ResultTooLarge": Binary{Body: make([]byte, storedLimit+1)},
		"InvalidResult":  make(chan int),
	} {
		if end := ends(result, nil); end.error == nil || end.error.Type != kind || end.error.Retryable {
			t.Errorf("%s: %+v", kind, end.error)
		}
	}
	for _, kind := range []string{"png", "image/png\n", "image/", "text/plain; a=ä"} {
		if end := ends(Binary{ContentType: kind}, nil); end.error == nil || end.error.Type != "InvalidResult" {
			t.Errorf("%q: %+v", kind, end)
		}
	}
}

func TestResultsForAStore(t *testing.T) {
	for kind, result := range map[string]any{
		"ResultTooLarge": strings.Repeat("x", resultLimit),
		"InvalidResult":  Binary{Body: []byte{0, 255}, ContentType: "image/png"},
	} {
		end := ends(result, nil)
		if end.error != nil || end.unstored == nil {
			t.Errorf("%s: %+v", kind, end)
			continue
		}
		lost := withoutStore(end)
		if lost.error == nil || lost.error.Type != kind || lost.error.Retryable || lost.unstored != nil {
			t.Errorf("%s: %+v", kind, lost.error)
		}
	}
	if end := ends(Binary{}, nil); end.unstored == nil || end.unstored.contentType != "application/octet-stream" {
		t.Errorf("%+v", end)
	}
}

func TestAStoreThatThisWorkerDoesNotKnowFailsTheAttempt(t *testing.T) {
	store := newResultStore(ResultSettings{URI: "postgresql://host/database"})
	m := &message{namespace: "shop", queue: "q", attempt: 2, epoch: 1}
	m.correlationID = "u"
	if key := storeKey(m); key != "shop/q/u/2-1" {
		t.Error(key)
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	end := store.keep(ctx, m, ends(Binary{Body: []byte("x")}, nil), time.Minute)
	if end.error == nil || end.error.Type != "ResultNotStored" || !end.error.Retryable || end.unstored != nil {
		t.Fatalf("%+v", end)
	}
	if !strings.Contains(end.error.Message, "in Redis only") {
		t.Error(end.error.Message)
	}
	small := ends(map[string]int{"a": 1}, nil)
	if end := store.keep(ctx, m, small, time.Minute); end.error != nil || string(end.result) != `{"a":1}` {
		t.Errorf("%+v", end)
	}
}

func TestReservedTypesAreTheWorkersOwn(t *testing.T) {
	own := newError("Timeout", "no end", true)
	if got := own.onWire(true); got.Type != "taskqueue.Timeout" || got.Application {
		t.Errorf("%+v", got)
	}
	if got := own.onWire(false); got.Type != "Timeout" || own.Type != "Timeout" {
		t.Errorf("to an older operator: %+v", got)
	}
	for _, kind := range []string{"UnknownHandler", "taskqueue.UnknownHandler"} {
		if got := ends(nil, Fail(kind, "x")).error.onWire(true); got.Type != "UnknownHandler" || !got.Application {
			t.Errorf("%s: %+v", kind, got)
		}
	}
}

func TestErrors(t *testing.T) {
	_, missing := os.Open("/nowhere")
	for _, each := range []struct {
		err       error
		kind      string
		retryable bool
		after     time.Duration
	}{
		{errors.New("broken"), "Error", true, 0},
		{fmt.Errorf("while reading: %w", fs.ErrExist), "Error", true, 0},
		{missing, "PathError", true, 0},
		{Fail("NotFound", "no such page"), "NotFound", false, 0},
		{fmt.Errorf("page 7: %w", Fail("NotFound", "no such page")), "NotFound", false, 0},
		{Retry("not ready", time.Minute), "Retry", true, time.Minute},
	} {
		end := ends(nil, each.err)
		if end.error.Type != each.kind || end.error.Retryable != each.retryable ||
			end.retryAfter != each.after || end.error.Message != each.err.Error() {
			t.Errorf("%v: %+v after %s", each.err, end.error, end.retryAfter)
		}
	}
}

func TestAPanicIsAFailedAttempt(t *testing.T) {
	end := call(context.Background(), func(context.Context, json.RawMessage) (any, error) {
		panic("no pixels")
	}, nil)
	if end.error == nil || end.error.Type != "Panic" || end.error.Message != "no pixels" {
		t.Errorf("%+v", end.error)
	}
}

func TestParseCommand(t *testing.T) {
	for text, valid := range map[string]bool{
		`{"order": "cancel", "token": "k", "uid": "u"}`:               true,
		`{"order": "release", "token": "k"}`:                          true,
		`{"order": "drain", "pod": "p", "namespace": "n", "more": 1}`: true,
		`{"order": "cancel"}`:                                         false,
		`{"order": "drain", "pod": "p"}`:                              false,
		`{"order": "dance", "token": "k"}`:                            false,
		`[]`:                                                          false,
	} {
		if _, err := parseCommand([]byte(text)); (err == nil) != valid {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestCommandLogKeepsTheLastCommandForADay(t *testing.T) {
	commands, now := newCommandLog(), time.Now()
	commands.add(command{Kind: commandRelease, Token: "a"}, now)
	commands.add(command{Kind: commandCancel, Token: "a"}, now)
	commands.add(command{Kind: commandRelease, Token: "b"}, now.Add(time.Hour))
	if kind, _ := commands.get("a"); kind != commandCancel {
		t.Errorf("a is to be %s", kind)
	}
	commands.add(command{Kind: commandCancel, Token: "c"}, now.Add(commandLife+time.Minute))
	if _, known := commands.get("a"); known {
		t.Error("a is known after a day")
	}
	if _, known := commands.get("b"); !known {
		t.Error("b was dropped within a day")
	}
}

func TestOutcomeCacheDropsTheOldest(t *testing.T) {
	finished := newOutcomeCache()
	for number := range finishedLimit + 1 {
		finished.add(fmt.Sprint(number), outgoing{key: fmt.Sprint(number)})
	}
	if _, known := finished.get("0"); known {
		t.Error("nothing was dropped")
	}
	if outcome, known := finished.get("1"); !known || outcome.key != "1" {
		t.Error("too much was dropped")
	}
}

func TestHeartbeatReportsWhatRuns(t *testing.T) {
	d := newDispatcher(Settings{Pod: "pod-1", Slots: 2}, &handlers{}, nil, nil)
	if d.heartbeat() != nil {
		t.Error("a heartbeat before there was a consumer")
	}
	d.registered = true
	running := &run{message: &message{token: "k", correlationID: "u"}, progress: &progress{}}
	settled := &run{message: &message{token: "l"}, progress: &progress{}, settled: true}
	direct := &run{message: &message{}, progress: &progress{}}
	d.running = map[*run]bool{running: true, settled: true, direct: true}
	Progress(context.WithValue(context.Background(), progressKey{}, running.progress), 140, "nearly")
	data := d.heartbeat()
	if data.State != "ready" || len(data.Running) != 1 || data.Busy != 2 {
		t.Fatalf("%+v", data)
	}
	if one := data.Running[0]; one.UID != "u" || one.Token != "k" || *one.Progress != (reportedProgress{100, "nearly"}) {
		t.Errorf("%+v", one)
	}
	d.stopping = true
	if data := d.heartbeat(); data.State != "draining" {
		t.Errorf("it is %s", data.State)
	}
	d.drained, d.registered = true, false
	if data := d.heartbeat(); data == nil || data.State != "stopped" {
		t.Errorf("a drained worker reports %+v", data)
	}
}

func TestDrainCommandIsForTheRunningProcess(t *testing.T) {
	d := newDispatcher(Settings{Namespace: "shop", Pod: "pod-1"}, &handlers{}, nil, nil)
	c := newCommandConsumer(d, slog.New(slog.NewTextHandler(io.Discard, nil)))
	drains := 0
	d.onDrain = func() { drains++ }
	read := func(at int64, id, pod string) {
		c.onDelivery(&amqp.Delivery{
			MessageId: id,
			Headers:   amqp.Table{"x-stream-offset": at},
			Body:      []byte(`{"order": "drain", "namespace": "shop", "pod": "` + pod + `"}`),
		})
		for _, act := range d.inbox.drain() {
			act()
		}
	}
	expect := func(want int, why string) {
		t.Helper()
		if drains != want {
			t.Errorf("%s: drained %d times, not %d", why, drains, want)
		}
	}
	read(0, "m-0", "pod-1")
	read(1, "", "pod-1")
	c.onCaughtUp(func() {})
	expect(0, "given before it had caught up")
	c.seenOffset = -1
	read(0, "m-0", "pod-1")
	read(1, "", "pod-1")
	expect(0, "the same again")
	read(2, "m-2", "pod-2")
	expect(0, "for another pod")
	read(3, "m-3", "pod-1")
	expect(1, "given afterwards")
	c.seenOffset = -1
	read(0, "m-4", "pod-1")
	expect(2, "given in a stream created again")
}

func TestAMessageOfAnotherTaskQueueIsDeadLettered(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	outcomes := newOutcomePublisher(Broker{}, "worker", log)
	d := newDispatcher(Settings{Namespace: "shop", Queue: "other"}, &handlers{}, outcomes, log)
	d.onDelivery(taskDelivery())
	published := outcomes.inbox.drain()
	if len(published) != 1 || published[0].exchange != deadExchange || published[0].key != "shop.other" {
		t.Fatalf("published: %v", published)
	}
	reason, _ := published[0].publishing.Headers["tq-error"].(string)
	if !strings.Contains(reason, "TaskQueue shop.q, this worker is of shop.other") || len(d.waiting) != 0 {
		t.Errorf("%d wait, the reason is %q", len(d.waiting), reason)
	}
}

func TestAHandlerThatEndsItsGoroutineHasFailed(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	outcomes := newOutcomePublisher(Broker{}, "worker", log)
	known := &handlers{byName: map[string]Handler{
		"resize": func(context.Context, json.RawMessage) (any, error) {
			runtime.Goexit()
			return nil, nil
		},
	}}
	d := newDispatcher(Settings{Namespace: "shop", Queue: "q", Slots: 1}, known, outcomes, log)
	d.onStateChanged, d.onBusyChanged = func() {}, func() {}
	d.onDelivery(taskDelivery())
	d.fill()
	for len(d.running) > 0 {
		select {
		case <-d.inbox.more:
			for _, act := range d.inbox.drain() {
				act()
			}
		case <-time.After(10 * time.Second):
			t.Fatal("its slot is lost")
		}
	}
	if published := outcomes.inbox.drain(); len(published) != 1 || !strings.HasSuffix(published[0].key, "task.failed") {
		t.Errorf("published: %v", published)
	}
}

func TestAnAttemptOfAnOlderOperatorEndsWhatWasAnnounced(t *testing.T) {
	settings := Settings{Namespace: "shop", Queue: "q", Pod: "pod-1", DirectMaxDeliveries: 3}
	d := newDispatcher(settings, &handlers{}, nil, nil)
	d.onCommand(command{Kind: commandCancel, Token: noToken, Understands: []string{reservedTypes}})
	newer, direct, older := taskDelivery(), taskDelivery(), taskDelivery()
	newer.Headers["tq-checkpointed"] = false
	direct.Exchange = directExchange
	for _, delivery := range []*amqp.Delivery{newer, direct} {
		if d.onDelivery(delivery); !d.prefixed {
			t.Errorf("%+v ended it", delivery)
		}
	}
	if d.onDelivery(older); d.prefixed {
		t.Error("reserved types still have their prefix")
	}
}

func TestWhatIsDeliveredAgainIsGivenBack(t *testing.T) {
	yes, no, fence := true, false, int64(7)
	for _, each := range []struct {
		checkpointed *bool
		fence        *int64
		deliveries   int64
		runs         bool
	}{
		{&no, nil, 0, true},
		{&no, nil, 1, false},
		{&no, nil, 9, false},
		{&no, &fence, 1, true},
		{&yes, nil, 1, false},
		{&yes, &fence, 1, false},
		{nil, nil, 1, true},
	} {
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		d := newDispatcher(Settings{}, &handlers{}, newOutcomePublisher(Broker{}, "", log), log)
		m := &message{token: "k.1", maxDeliveries: 9, checkpointed: each.checkpointed, fence: each.fence}
		d.admit(&run{message: m, dispatcher: d, deliveries: each.deliveries})
		if runs := len(d.waiting) == 1; runs != each.runs {
			t.Errorf("%+v: runs is %v", each, runs)
		}
		if given := len(d.outcomes.inbox.drain()); (given == 0) != each.runs {
			t.Errorf("%+v: %d reports", each, given)
		}
	}
}

func TestResultsAreExact(t *testing.T) {
	nested := any(1)
	for range depthLimit - 1 {
		nested = []any{nested}
	}
	for place, result := range map[string]any{
		"result.items[1].loss: ": map[string]any{"items": []any{0, map[string]any{"loss": uint64(1 << 63)}}},
		"result.value[0]: ":      []any{json.Number("340282366920938463463374607431768211456")},
		"result.a: ":             json.RawMessage(`{"a":1e400}`),
		"result.value[0]":        []any{nested},
	} {
		end := ends(result, nil)
		if end.error == nil || end.error.Type != "InvalidResult" || !strings.HasPrefix(end.error.Message, place) {
			t.Errorf("%s: %+v", place, end.error)
		}
	}
	for _, result := range []any{nested, int64(math.MinInt64), int64(math.MaxInt64), 1e300} {
		if end := ends(result, nil); end.error != nil {
			t.Errorf("%v: %+v", result, end.error)
		}
	}
}
