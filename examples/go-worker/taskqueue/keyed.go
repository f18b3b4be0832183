package taskqueue

import "time"

// Two attempts of one concurrency key must never run at once. The broker delivers a message again
// only when it has lost the worker that had it, so the worker ends what is keyed before the broker
// can consider it lost, and ends itself if a handler does not return.

// ExitCode is that of a worker that ended itself for a keyed attempt: EX_TEMPFAIL of sysexits.
const ExitCode = 75

const (
	// silenceLimit is how long the broker may be silent: one heartbeat interval.
	silenceLimit = heartbeat
	// redelivery is how long after its last frame the broker may deliver again.
	redelivery = heartbeat * 3 / 2
	// lostGrace is how long an execution may take to end once that may be.
	lostGrace = time.Second
	// timedOutGrace is how long it may take after its time-out.
	timedOutGrace = 5 * time.Second
	// silenceCheckInterval is the time between two checks of the broker's silence. It takes two checks:
	// after a pause of the process, the broker's frames may still be unread in the socket.
	silenceCheckInterval = 200 * time.Millisecond
)

// expiry is the time by which an execution must have ended.
type expiry struct {
	by    time.Time
	timer *time.Timer
	// silent: because the broker is silent; it is cancelled if the broker sends something in time.
	silent bool
}

func (e *expiry) cancel() {
	if e != nil {
		e.timer.Stop()
	}
}

// checkSilence cuts keyed work off once the broker has been silent for too long.
func (d *dispatcher) checkSilence() {
	if d.silence == nil || d.silence() < silenceLimit {
		d.silent = 0
		return
	}
	if d.silent++; d.silent >= 2 {
		d.cutOff("the broker is silent", time.Now().Add(d.untilRedelivery()), true)
	}
}

// untilRedelivery is how long it takes until the broker may deliver again.
func (d *dispatcher) untilRedelivery() time.Duration {
	if d.silence == nil {
		return 0
	}
	return redelivery - d.silence()
}

// cutOff gives keyed work up: another worker may have it soon. Its outcome is not reported.
func (d *dispatcher) cutOff(reason string, by time.Time, silent bool) {
	for _, r := range d.removeWaiting((*run).keyed) {
		r.releaseToken()
		r.requeue()
	}
	for r := range d.running {
		if next := r.next; next != nil {
			r.next = nil
			next.releaseToken()
			next.requeue()
		}
		if !r.keyed() {
			continue
		}
		if !r.disowned {
			d.log.Warn("task.disowned", r.fields("reason", reason)...)
			r.disowned, r.settled = true, true
			r.releaseToken()
			r.onReturned = r.requeue
			r.stopTimers()
			r.stop()
		}
		d.setExpiry(r, by, silent)
	}
}

// setExpiry ends the process if a run has not ended by a time; of several the earliest counts.
func (d *dispatcher) setExpiry(r *run, by time.Time, silent bool) {
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
				d.onExpired(r)
			}
		})
	})
}

// onExpired ends the process, unless silence was the only reason and the broker has sent something
// since: then the message is still ours.
func (d *dispatcher) onExpired(r *run) {
	left := d.untilRedelivery()
	if timeout := r.startedAt.Add(r.timeout()); r.expiry.silent && left > 0 && time.Now().Before(timeout) {
		later := time.Now().Add(max(left, silenceCheckInterval))
		r.expiry = nil
		d.setExpiry(r, later, true)
		return
	}
	d.log.Error("worker.aborted", r.fields(
		"reason", "a keyed attempt was asked to stop and still runs, and another of its key may start now",
		"hint", "make handlers of keyed Tasks return when their context ends")...)
	d.abort()
}
