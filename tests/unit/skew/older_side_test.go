// Writes the messages of the Go worker of commit 0829e12. Put it into that commit's
// examples/go-worker/taskqueue, and run: go test -run TestWriteMessages
package taskqueue

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestWriteMessages(t *testing.T) {
	m := &message{
		correlationID: "0b1c5f0e-1a2b-4c3d-8e9f-0123456789ab",
		namespace:     "shop", queue: "images", task: "resize-1",
		token: "k1.e77ddc72149329b042173c60cab68305", attempt: 2, epoch: 1,
	}
	pod := "go-worker-5d9c-x2x7q"
	settings := Settings{Namespace: "shop", Queue: "images", Pod: pod, Slots: 4}
	took := 1500 * time.Millisecond
	call := func(result any, err error) ending {
		end := call(context.Background(), func(context.Context, json.RawMessage) (any, error) {
			return result, err
		}, nil)
		end.took = took
		return end
	}
	timedOut := ending{error: &eventError{"Timeout", "no end after 5m0s", true}, took: took}
	unknown := ending{error: &eventError{"UnknownHandler", `no handler "resize"`, true}}
	lost := ending{error: &eventError{"WorkerLost", "delivered 3 times without an outcome", true}}
	ends := map[string]ending{
		"succeeded":                        call(map[string]int{"width": 640}, nil),
		"succeeded without a result":       call(nil, nil),
		"failed by an error":               call(nil, errors.New("no route")),
		"failed for good":                  call(nil, Fail("NotFound", "no such page")),
		"wants a later retry":              call(nil, Retry("rate limit", 30*time.Second)),
		"with a result that is no JSON":    call(make(chan int), nil),
		"timed out":                        timedOut,
		"of an unknown handler":            unknown,
		"lost its workers":                 lost,
		"cancelled":                        {took: took},
		"started":                          {},
		"released":                         {},
		"a direct message succeeded":       call(map[string]int{"width": 640}, nil),
		"a direct message failed for good": call(nil, Fail("NotFound", "no such page")),
	}
	events := map[string]any{}
	for name, end := range ends {
		var sent outgoing
		switch name {
		case "a direct message succeeded", "a direct message failed for good":
			d := &amqp.Delivery{CorrelationId: "order-7", MessageId: "message-7"}
			sent = directEvent(&settings, d, 2, end)
		case "cancelled":
			sent = taskEvent(m, cancelled, pod, &end)
		case "started":
			sent = taskEvent(m, started, pod, nil)
		case "released":
			sent = taskEvent(m, released, pod, nil)
		default:
			sent = taskEvent(m, end.kind(), pod, &end)
		}
		events[name] = written(t, sent.key, sent.publishing.Body)
	}

	runtime.GOMAXPROCS(2)
	d := newDesk(settings, &handlers{}, nil, nil)
	d.registered = true
	d.running = map[*run]bool{
		{message: m, progress: &progress{percent: 40, message: "page 4 of 10", said: true}}: true,
		{message: &message{}, progress: &progress{}}:                                        true,
	}
	t.Setenv("NODE_NAME", "node-1")
	beats := map[string]any{"busy": d.heartbeat()}
	d.running = nil
	t.Setenv("NODE_NAME", "")
	beats["idle, of nobody knows where"] = d.heartbeat()

	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"EVENTS": events, "HEARTBEATS": beats}); err != nil {
		t.Fatal(err)
	}
}

func written(t *testing.T, key string, body []byte) map[string]any {
	var event map[string]any
	if err := json.Unmarshal(body, &event); err != nil {
		t.Fatal(err)
	}
	if id := event["id"].(string); id != "message-7" {
		event["id"] = "a random one"
	}
	return map[string]any{"key": key, "body": event}
}
