package taskqueue

import (
	"encoding/json"
	"fmt"
	"time"
)

type commandKind string

const (
	commandCancel  commandKind = "cancel"
	commandRelease commandKind = "release"
	commandDrain   commandKind = "drain"
)

// answer returns the event that reports that the worker has obeyed.
func (k commandKind) answer() eventKind {
	if k == commandRelease {
		return released
	}
	return cancelled
}

// command is what the operator sends to all workers.
type command struct {
	Kind      commandKind `json:"order"`
	Token     string      `json:"token"`
	Pod       string      `json:"pod"`
	Namespace string      `json:"namespace"`
	// Understands is what the operator reads besides what the first ones did: in the command about
	// noToken, which it sends when it connects.
	Understands []string `json:"understands"`
	// Installation is that operator's; one that does not say is of the default one.
	Installation string `json:"installation"`
}

// noToken is the token of no attempt.
const noToken = "none"

func parseCommand(body []byte) (command, error) {
	o := command{Installation: defaultInstallation}
	if err := json.Unmarshal(body, &o); err != nil {
		return o, fmt.Errorf("a command must be a JSON object: %w", err)
	}
	switch o.Kind {
	case commandCancel, commandRelease:
		if o.Token == "" {
			return o, fmt.Errorf("a command to %s must name a token", o.Kind)
		}
	case commandDrain:
		if o.Pod == "" || o.Namespace == "" {
			return o, fmt.Errorf("a command to drain must name pod and namespace")
		}
	default:
		return o, fmt.Errorf("unknown command %q", o.Kind)
	}
	return o, nil
}

// commandLife is how long a command is kept: as long as the stream keeps it.
const commandLife = 24 * time.Hour

// commandLog has the last command for each token, for a day.
type commandLog struct {
	kinds map[string]commandKind
	// age has the tokens in order of arrival, the oldest first.
	age []commandAge
}

type commandAge struct {
	token string
	at    time.Time
}

func newCommandLog() *commandLog { return &commandLog{kinds: map[string]commandKind{}} }

func (b *commandLog) add(o command, now time.Time) {
	for len(b.age) > 0 && now.Sub(b.age[0].at) > commandLife {
		delete(b.kinds, b.age[0].token)
		b.age = b.age[1:]
	}
	if _, known := b.kinds[o.Token]; !known {
		b.age = append(b.age, commandAge{o.Token, now})
	}
	b.kinds[o.Token] = o.Kind
}

func (b *commandLog) get(token string) (commandKind, bool) {
	kind, ok := b.kinds[token]
	return kind, ok
}

// finishedLimit is how many outcomes are kept.
const finishedLimit = 2000

// outcomeCache keeps the outcomes of the attempts that ended last (4).
type outcomeCache struct {
	outcomes map[string]outgoing
	age      []string
}

func newOutcomeCache() *outcomeCache { return &outcomeCache{outcomes: map[string]outgoing{}} }

func (f *outcomeCache) add(token string, outcome outgoing) {
	if _, known := f.outcomes[token]; known {
		return
	}
	f.outcomes[token] = outcome
	f.age = append(f.age, token)
	if len(f.age) > finishedLimit {
		delete(f.outcomes, f.age[0])
		f.age = f.age[1:]
	}
}

func (f *outcomeCache) get(token string) (outgoing, bool) {
	outcome, ok := f.outcomes[token]
	return outcome, ok
}
