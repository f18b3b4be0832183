package taskqueue

import "time"

// Two attempts of one concurrency key must never run at once. The broker delivers a message again
// only when it has lost the worker that had it, so the worker ends what is keyed before the broker
// can take it for lost, and itself where a handler does not return.

// ExitCode is that of a worker that ended itself for a keyed attempt: EX_TEMPFAIL of sysexits.
const ExitCode = 75

const (
	// silenceLimit is how long the broker may be silent: one heartbeat interval.
	silenceLimit = heartbeat
	// redelivery is how long after it was last heard the broker may deliver again.
	redelivery = heartbeat * 3 / 2
	// lostGrace is how long an execution may take to end once that may be.
	lostGrace = time.Second
	// timedOutGrace is how long it may take after its time-out.
	timedOutGrace = 5 * time.Second
	// lookInterval is how often the broker's silence is looked at. It takes two looks: a process that
	// stood still has what the broker said in its socket.
	lookInterval = 200 * time.Millisecond
)

// expiry is the time by which an execution must have ended.
type expiry struct {
	by    time.Time
	timer *time.Timer
	// silent: because the broker is silent; it is off again if the broker is heard in time.
	silent bool
}

func (e *expiry) cancel() {
	if e != nil {
		e.timer.Stop()
	}
}

// listen looks whether the broker has been silent for too long.
func (d *desk) listen() {
	if d.silence == nil || d.silence() < silenceLimit {
		d.silent = 0
		return
	}
	if d.silent++; d.silent >= 2 {
		d.cutOff("the broker is silent", time.Now().Add(d.untilRedelivery()), true)
	}
}

// untilRedelivery is how long it takes until the broker may deliver again.
func (d *desk) untilRedelivery() time.Duration {
	if d.silence == nil {
		return 0
	}
	return redelivery - d.silence()
}

// cutOff gives up what is keyed: another worker may have it soon. Nothing is told of it.
func (d *desk) cutOff(reason string, by time.Time, silent bool) {
	for _, r := range d.takeWaiting((*run).keyed) {
		r.forget()
		r.giveBack()
	}
	for r := range d.running {
		if next := r.successor; next != nil {
			r.successor = nil
			next.forget()
			next.giveBack()
		}
		if !r.keyed() {
			continue
		}
		if !r.cut {
			d.log.Warn("task.cut_off", r.fields("reason", reason)...)
			r.cut, r.settled = true, true
			r.forget()
			r.farewell = r.giveBack
			r.stopTimers()
			r.stop()
		}
		d.expect(r, by, silent)
	}
}

// expect has the execution of a run end by a time; of several the earliest counts.
func (d *desk) expect(r *run, by time.Time, silent bool) {
	if r.expiry != nil {
		if silent && r.expiry.silent || !by.Before(r.expiry.by) {
			return
		}
		r.expiry.cancel()
	}
	e := &expiry{by: by, silent: silent}
	r.expiry = e
	e.timer = time.AfterFunc(time.Until(by), func() {
		d.post(func() {
			if r.expiry == e && d.running[r] {
				d.due(r)
			}
		})
	})
}

// due: the time is up. Where only silence was the reason and the broker has been heard again, the
// message is still ours.
func (d *desk) due(r *run) {
	left := d.untilRedelivery()
	if timeout := r.startedAt.Add(r.timeout()); r.expiry.silent && left > 0 && time.Now().Before(timeout) {
		again := time.Now().Add(max(left, lookInterval))
		r.expiry = nil
		d.expect(r, again, true)
		return
	}
	d.log.Error("worker.aborted", r.fields(
		"reason", "a keyed attempt was told to end and runs on, and another of its key may begin now",
		"todo", "let handlers of keyed Tasks heed their context")...)
	d.abort()
}
