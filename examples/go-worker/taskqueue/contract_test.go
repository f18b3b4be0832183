package taskqueue

import (
	"encoding/json"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

func taskDelivery() *amqp.Delivery {
	return &amqp.Delivery{
		Type:          "resize",
		CorrelationId: "uid-1",
		Headers: amqp.Table{
			"tq-version": int8(1), "tq-namespace": "shop", "tq-queue": "q", "tq-task": "t",
			"tq-attempt": int16(2), "tq-max-attempts": int32(3), "tq-epoch": int64(4),
			"tq-token": "k1.x", "tq-max-deliveries": uint8(5), "tq-timeout-seconds": uint16(6),
		},
		Body: []byte(`{"width": 64}`),
	}
}

func TestIntegersOfAnyWidthAreTaken(t *testing.T) {
	m, err := parse(taskDelivery())
	if err != nil {
		t.Fatal(err)
	}
	numbers := []int64{m.attempt, m.maxAttempts, m.epoch, m.maxDeliveries, m.timeoutSeconds}
	for index, want := range []int64{2, 3, 4, 5, 6} {
		if numbers[index] != want {
			t.Errorf("number %d is %d, not %d", index, numbers[index], want)
		}
	}
	if m.direct() || m.fence != nil || m.handler != "resize" || m.correlationID != "uid-1" {
		t.Errorf("read as %+v", m)
	}
}

func TestWhatComesByTheDirectExchangeIsDirectWhateverItsHeadersSay(t *testing.T) {
	d := taskDelivery()
	d.Exchange = directExchange
	d.Headers["tq-fence"] = int64(1) << 62
	m, err := parse(d)
	if err != nil || !m.direct() || m.fence != nil || m.token != "" {
		t.Errorf("read as %+v, error %v", m, err)
	}
	letter := deadLetter(d, "shop.q", "no")
	if found := letter.publishing.Headers["tq-exchange"]; found != directExchange {
		t.Errorf("its dead letter names the exchange %v", found)
	}
}

func TestAFenceOfZeroIsAFence(t *testing.T) {
	d := taskDelivery()
	d.Headers["tq-fence"] = int64(0)
	m, err := parse(d)
	if err != nil || m.fence == nil || *m.fence != 0 {
		t.Errorf("fence %v, error %v", m, err)
	}
}

func TestWhatBreaksTheContractIsNamed(t *testing.T) {
	for name, breakIt := range map[string]func(*amqp.Delivery){
		"tq-attempt":     func(d *amqp.Delivery) { delete(d.Headers, "tq-attempt") },
		"tq-epoch":       func(d *amqp.Delivery) { d.Headers["tq-epoch"] = "4" },
		"tq-token":       func(d *amqp.Delivery) { d.Headers["tq-token"] = int64(4) },
		"tq-fence":       func(d *amqp.Delivery) { d.Headers["tq-fence"] = true },
		"tq-version":     func(d *amqp.Delivery) { d.Headers["tq-version"] = int8(2) },
		"correlation_id": func(d *amqp.Delivery) { d.CorrelationId = "" },
		"body":           func(d *amqp.Delivery) { d.Body = []byte("[1]") },
	} {
		d := taskDelivery()
		breakIt(d)
		if _, err := parse(d); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestBodiesOfDirectMessages(t *testing.T) {
	for body, want := range map[string]string{
		`{"a": 1}`: `{"a": 1}`,
		`[1, 2]`:   `{"text":"[1, 2]"}`,
		`null`:     `{"text":"null"}`,
		"hello":    `{"text":"hello"}`,
		"":         `{"text":""}`,
		"\xff":     `{"text":"�"}`,
	} {
		m, err := parse(&amqp.Delivery{Body: []byte(body)})
		if err != nil || !m.direct() || string(m.payload) != want {
			t.Errorf("%q arrives as %s, error %v", body, m.payload, err)
		}
	}
}

func TestTheCountOfDeliveriesIsBelievedOfARedeliveryOnly(t *testing.T) {
	d := &amqp.Delivery{Headers: amqp.Table{"x-delivery-count": int64(7)}}
	if count := deliveriesSoFar(d); count != 0 {
		t.Errorf("a publisher's own header was believed: %d", count)
	}
	d.Redelivered = true
	if count := deliveriesSoFar(d); count != 7 {
		t.Errorf("%d deliveries, not 7", count)
	}
}

func TestADeadLetterLeavesTheBrokersHeadersBehind(t *testing.T) {
	d := taskDelivery()
	d.Headers["x-delivery-count"] = int64(3)
	letter := deadLetter(d, "shop.q", strings.Repeat("é", reasonLimit))
	headers := letter.publishing.Headers
	if _, there := headers["x-delivery-count"]; there || headers["tq-task"] != "t" {
		t.Errorf("headers %v", headers)
	}
	if reason := headers["tq-error"].(string); len(reason) > reasonLimit || len(reason) < reasonLimit-1 {
		t.Errorf("a reason of %d bytes", len(reason))
	}
	if letter.exchange != "taskqueue.dead" || letter.key != "shop.q" {
		t.Errorf("it goes to %s with key %s", letter.exchange, letter.key)
	}
}

func TestEventsAreAsTheContractShows(t *testing.T) {
	m, _ := parse(taskDelivery())
	end := ending{error: applicationError("OSError", "disk full", true), retryAfter: 30e9, took: 1.5e9}
	event := taskEvent(m, failed, "pod-1", &end)
	if event.exchange != "taskqueue.outcomes" || event.key != "shop.q.task.failed" {
		t.Errorf("it goes to %s with key %s", event.exchange, event.key)
	}
	var decoded map[string]any
	if err := json.Unmarshal(event.publishing.Body, &decoded); err != nil {
		t.Fatal(err)
	}
	delete(decoded, "id")
	got, _ := json.Marshal(decoded)
	want := `{"data":{"attempt":2,"epoch":4,"error":{"application":true,"message":"disk full","retryable":true,` +
		`"type":"OSError"},"retryAfterSeconds":30,"seconds":1.5,"token":"k1.x","uid":"uid-1",` +
		`"worker":"pod-1"},"datacontenttype":"application/json","source":"/workers/pod-1",` +
		`"specversion":"1.0","subject":"shop/t","taskqueue":"q","type":"dev.taskqueue.task.failed.v1"}`
	if string(got) != want {
		t.Errorf("%s\nnot\n%s", got, want)
	}
}

func TestTheEndOfADirectMessageHasItsId(t *testing.T) {
	settings := &Settings{Namespace: "shop", Queue: "q", Pod: "pod-1"}
	delivery := &amqp.Delivery{MessageId: "m-1", CorrelationId: "c-1"}
	event := directEvent(settings, delivery, 2, ending{})
	var decoded cloudEvent
	if err := json.Unmarshal(event.publishing.Body, &decoded); err != nil {
		t.Fatal(err)
	}
	data := decoded.Data
	if decoded.ID != "m-1" || *data.CorrelationID != "c-1" || data.Attempt != 2 || data.Token != "" {
		t.Errorf("%+v", decoded)
	}
	if decoded.Subject != "shop/q" || event.key != "shop.q.task.succeeded" {
		t.Errorf("subject %s, key %s", decoded.Subject, event.key)
	}
}

func TestJSONBeyondTheLimitsIsRefused(t *testing.T) {
	for _, text := range []string{
		`{"a":18446744073709551616}`,
		`{"a":1e400}`,
		strings.Repeat(`{"a":`, 101) + "1" + strings.Repeat("}", 101),
		strings.Repeat("[", 1000000) + strings.Repeat("]", 1000000),
	} {
		if m, err := parse(&amqp.Delivery{Exchange: directExchange, Body: []byte(text)}); err == nil {
			t.Errorf("direct: %.40s: %+v", text, m)
		}
		d := taskDelivery()
		d.Body = []byte(text)
		if m, err := parse(d); err == nil {
			t.Errorf("of a Task: %.40s: %+v", text, m)
		}
	}
}
