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
	// beatInterval is how often a worker tells of itself (10).
	beatInterval = 10 * time.Second
	// progressLimit is how much of a progress message is read.
	progressLimit = 1024
	// turnInterval is how often it is told at most that a worker has become busy or idle, and
	// turnSettled how long that must have lasted.
	turnInterval = 2 * time.Second
	turnSettled  = 100 * time.Millisecond
	// lastBeatLimit is how long the last heartbeat may hold the end up.
	lastBeatLimit = time.Second
)

// progress is what a handler said last of how far it is; nil percent and no message: nothing.
type progress struct {
	mutex   sync.Mutex
	percent int
	message string
	said    bool
}

type progressKey struct{}

// Progress tells how far an attempt is, 0 to 100 percent; the latest call counts. It goes out with
// the next heartbeat and into the Task's status.
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
	p.percent, p.message, p.said = min(max(percent, 0), 100), message, true
}

func (p *progress) told() *toldProgress {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if !p.said {
		return nil
	}
	return &toldProgress{Percent: p.percent, Message: p.message}
}

type toldProgress struct {
	Percent int    `json:"percent"`
	Message string `json:"message"`
}

type runningAttempt struct {
	UID      string        `json:"uid"`
	Token    string        `json:"token"`
	Progress *toldProgress `json:"progress,omitempty"`
}

type heartbeatData struct {
	Pod      string           `json:"pod"`
	Node     string           `json:"node,omitempty"`
	CPUs     int              `json:"cpus"`
	Slots    int              `json:"slots"`
	Handlers []string         `json:"handlers"`
	Running  []runningAttempt `json:"running"`
	State    string           `json:"state"`
	// Busy is how much runs whose end is not decided, direct messages included.
	Busy int `json:"busy"`
}

// heart tells the operator every few seconds that this worker lives and what it runs. Nothing hangs
// on a single heartbeat, so one that cannot be sent is not sent later.
type heart struct {
	desk *desk
	// now has a value when a heartbeat is due before its time.
	now chan struct{}
	// last has what is to be closed when the last heartbeat is out.
	last chan chan struct{}

	// Of the desk's goroutine: when the last heartbeat was made, whether it told of something that
	// runs, and whether a turn is going to be looked at.
	toldAt   time.Time
	toldBusy bool
	turning  bool
}

func newHeart(desk *desk) *heart {
	return &heart{desk: desk, now: make(chan struct{}, 1), last: make(chan chan struct{}, 1)}
}

func (h *heart) beatNow() {
	select {
	case h.now <- struct{}{}:
	default:
	}
}

// turned tells soon that the worker has become busy or idle, if that turns out to be so. It is called
// on the desk's goroutine, for each attempt where there is one slot.
func (h *heart) turned() {
	if h.turning {
		return
	}
	h.turning = true
	time.AfterFunc(max(turnSettled, time.Until(h.toldAt.Add(turnInterval))), func() {
		h.desk.post(func() {
			h.turning = false
			if h.desk.busy() > 0 != h.toldBusy {
				h.beatNow()
			}
		})
	})
}

// stop tells that the worker has left, if that is possible soon.
func (h *heart) stop() {
	sent := make(chan struct{})
	h.last <- sent
	select {
	case <-sent:
	case <-time.After(lastBeatLimit):
	}
}

// beat tells by a channel of its own until that ends: the broker closes it if it refuses.
func (h *heart) beat(ctx context.Context, conn *connection) {
	channel, err := conn.Channel()
	if err != nil {
		return
	}
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	ticker := time.NewTicker(beatInterval)
	defer ticker.Stop()
	h.beatNow()
	for {
		select {
		case <-ctx.Done():
			return
		case reason := <-closed:
			if reason != nil && ctx.Err() == nil {
				h.desk.log.Warn("heartbeat.not_sent", "reason", reason.Error())
			}
			return
		case <-ticker.C:
			h.send(ctx, channel)
		case <-h.now:
			h.send(ctx, channel)
		case sent := <-h.last:
			h.send(ctx, channel)
			close(sent)
		}
	}
}

func (h *heart) send(ctx context.Context, channel *amqp.Channel) {
	told := make(chan *heartbeatData, 1)
	h.desk.post(func() {
		data := h.desk.heartbeat()
		if data != nil {
			h.toldAt, h.toldBusy = time.Now(), data.Busy > 0
		}
		told <- data
	})
	var data *heartbeatData
	select {
	case data = <-told:
	case <-ctx.Done():
	}
	if data == nil {
		return // no consumer was ever registered
	}
	s := &h.desk.settings
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
		panic(err) // there is nothing in it that JSON cannot say
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

// heartbeat is what there is to tell now; nil before a consumer was registered.
func (d *desk) heartbeat() *heartbeatData {
	state := "ready"
	switch {
	case d.left:
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
			data.Running = append(data.Running, runningAttempt{r.correlationID, r.token, r.progress.told()})
		}
	}
	return data
}

// busy is how much runs whose end is not decided.
func (d *desk) busy() int {
	count := 0
	for r := range d.running {
		if !r.settled {
			count++
		}
	}
	return count
}
