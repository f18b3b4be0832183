package taskqueue

import (
	"context"
	"encoding/json"
	"os"
	"runtime"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	heartbeatsExchange = "taskqueue.heartbeats"
	// heartbeatInterval is the time between two heartbeats (10).
	heartbeatInterval = 10 * time.Second
	// progressLimit is how much of a progress message is read.
	progressLimit = 1024
	// busyChangeInterval is the least time between a heartbeat and an early one because the worker has
	// become busy or idle; busyChangeDelay is how long that must have lasted.
	busyChangeInterval = 2 * time.Second
	busyChangeDelay    = 100 * time.Millisecond
	// finalHeartbeatTimeout is how long the last heartbeat may delay the end.
	finalHeartbeatTimeout = time.Second
)

// progress is the last progress a handler reported.
type progress struct {
	mutex    sync.Mutex
	percent  int
	message  string
	reported bool
}

type progressKey struct{}

// Progress reports how far an attempt is, 0 to 100 percent; the latest call counts. The next heartbeat
// carries it into the Task's status.
func Progress(ctx context.Context, percent int, message string) {
	p, ok := ctx.Value(progressKey{}).(*progress)
	if !ok {
		return
	}
	if text := []rune(message); len(text) > progressLimit {
		message = string(text[:progressLimit])
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.percent, p.message, p.reported = min(max(percent, 0), 100), message, true
}

func (p *progress) latest() *reportedProgress {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if !p.reported {
		return nil
	}
	return &reportedProgress{Percent: p.percent, Message: p.message}
}

type reportedProgress struct {
	Percent int    `json:"percent"`
	Message string `json:"message"`
}

type runningAttempt struct {
	UID      string            `json:"uid"`
	Token    string            `json:"token"`
	Attempt  int64             `json:"attempt"`
	Epoch    int64             `json:"epoch"`
	Progress *reportedProgress `json:"progress,omitempty"`
}

type heartbeatData struct {
	Pod      string           `json:"pod"`
	Node     string           `json:"node,omitempty"`
	CPUs     int              `json:"cpus"`
	Slots    int              `json:"slots"`
	Handlers []string         `json:"handlers"`
	Running  []runningAttempt `json:"running"`
	State    string           `json:"state"`
	// Busy counts the runs whose end is not decided, direct messages included.
	Busy int `json:"busy"`
}

// heartbeatSender reports every few seconds that this worker lives and what it runs. No single
// heartbeat matters, so one that cannot be sent is dropped. The broker refuses one by closing its
// channel; the next heartbeat opens another.
type heartbeatSender struct {
	dispatcher *dispatcher
	// now has a value when a heartbeat is due before its time.
	now chan struct{}
	// last has a channel to close when the last heartbeat has been sent.
	last chan chan struct{}

	// Owned by the dispatcher's goroutine: when the last heartbeat was made, whether anything ran then,
	// and whether a check for a change is scheduled.
	lastSentAt        time.Time
	lastSentBusy      bool
	busyChangePending bool
}

func newHeartbeatSender(dispatcher *dispatcher) *heartbeatSender {
	return &heartbeatSender{dispatcher: dispatcher, now: make(chan struct{}, 1), last: make(chan chan struct{}, 1)}
}

func (h *heartbeatSender) sendNow() {
	select {
	case h.now <- struct{}{}:
	default:
	}
}

// onBusyChanged sends a heartbeat soon, if the worker is still busy or idle by then. The dispatcher's
// goroutine calls it, with a single slot for each attempt.
func (h *heartbeatSender) onBusyChanged() {
	if h.busyChangePending {
		return
	}
	h.busyChangePending = true
	time.AfterFunc(max(busyChangeDelay, time.Until(h.lastSentAt.Add(busyChangeInterval))), func() {
		h.dispatcher.post(func() {
			h.busyChangePending = false
			if h.dispatcher.busy() > 0 != h.lastSentBusy {
				h.sendNow()
			}
		})
	})
}

// stop sends the last heartbeat, state stopped, if that is possible soon.
func (h *heartbeatSender) stop() {
	sent := make(chan struct{})
	h.last <- sent
	select {
	case <-sent:
	case <-time.After(finalHeartbeatTimeout):
	}
}

// run sends heartbeats on channels of their own until the context ends, with the connection.
func (h *heartbeatSender) run(ctx context.Context, conn *connection) {
	var channel *amqp.Channel // nil: to be opened
	var closed chan *amqp.Error
	lastReason := ""
	notSent := func(err error) {
		if reason := err.Error(); reason != lastReason && ctx.Err() == nil {
			lastReason = reason
			h.dispatcher.log.Warn("heartbeat.not_sent", "error", reason)
		}
	}
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	send := func() {
		if channel == nil || channel.IsClosed() {
			opened, err := openHeartbeats(conn)
			if err != nil {
				notSent(err)
				return
			}
			channel, closed = opened, opened.NotifyClose(make(chan *amqp.Error, 1))
		}
		h.send(ctx, channel)
	}
	h.sendNow()
	for {
		select {
		case <-ctx.Done():
			return
		case reason := <-closed:
			channel, closed = nil, nil
			if reason != nil {
				notSent(reason)
			}
		case <-ticker.C:
			send()
		case <-h.now:
			send()
		case sent := <-h.last:
			send()
			close(sent)
		}
	}
}

// openHeartbeats opens a channel on which the exchange is known to exist.
func openHeartbeats(conn *connection) (*amqp.Channel, error) {
	if err := checkExchange(conn, heartbeatsExchange); err != nil {
		return nil, err
	}
	return conn.Channel()
}

func (h *heartbeatSender) send(ctx context.Context, channel *amqp.Channel) {
	made := make(chan *heartbeatData, 1)
	h.dispatcher.post(func() {
		data := h.dispatcher.heartbeat()
		if data != nil {
			h.lastSentAt, h.lastSentBusy = time.Now(), data.Busy > 0
		}
		made <- data
	})
	var data *heartbeatData
	select {
	case data = <-made:
	case <-ctx.Done():
	}
	if data == nil {
		return // no consumer was ever registered
	}
	s := &h.dispatcher.settings
	body, err := json.Marshal(map[string]any{
		"specversion":     "1.0",
		"id":              newID(),
		"type":            "dev.taskqueue.worker.heartbeat.v1",
		"source":          "/workers/" + s.Pod,
		"subject":         s.Namespace + "/" + s.Queue,
		"taskqueue":       s.Queue,
		"datacontenttype": "application/json",
		"data":            data,
	})
	if err != nil {
		panic(err) // all of it encodes as JSON
	}
	key := RoutingKey(s.Namespace, s.Queue) + ".worker.heartbeat"
	_ = channel.PublishWithContext(ctx, heartbeatsExchange, key, false, false, amqp.Publishing{
		ContentType:  "application/cloudevents+json",
		DeliveryMode: amqp.Transient,
		AppId:        appID,
		MessageId:    newID(),
		Body:         body,
	})
}

// heartbeat returns the current state; nil before a consumer was registered.
func (d *dispatcher) heartbeat() *heartbeatData {
	state := "ready"
	switch {
	case d.drained:
		state = "stopped"
	case !d.registered:
		return nil
	case d.stopping:
		state = "draining"
	}
	data := &heartbeatData{
		Pod:      d.settings.Pod,
		Node:     os.Getenv("NODE_NAME"),
		CPUs:     runtime.GOMAXPROCS(0),
		Slots:    d.settings.Slots,
		Handlers: d.handlers.names(),
		Running:  []runningAttempt{},
		State:    state,
		Busy:     d.busy(),
	}
	for r := range d.running {
		if !r.direct() && !r.settled {
			data.Running = append(data.Running, runningAttempt{
				r.correlationID, r.token, r.attempt, r.epoch, r.progress.latest(),
			})
		}
	}
	return data
}

// busy counts the runs whose end is not decided.
func (d *dispatcher) busy() int {
	count := 0
	for r := range d.running {
		if !r.settled {
			count++
		}
	}
	return count
}
