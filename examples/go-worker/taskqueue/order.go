package taskqueue

import (
	"encoding/json"
	"fmt"
	"time"
)

type orderKind string

const (
	orderCancel  orderKind = "cancel"
	orderRelease orderKind = "release"
	orderDrain   orderKind = "drain"
)

// answer is what a worker tells once it has obeyed.
func (k orderKind) answer() eventKind {
	if k == orderRelease {
		return released
	}
	return cancelled
}

// order is what the operator tells all workers.
type order struct {
	Kind      orderKind `json:"order"`
	Token     string    `json:"token"`
	Pod       string    `json:"pod"`
	Namespace string    `json:"namespace"`
}

func parseOrder(body []byte) (order, error) {
	var o order
	if err := json.Unmarshal(body, &o); err != nil {
		return o, fmt.Errorf("an order must be a JSON object: %w", err)
	}
	switch o.Kind {
	case orderCancel, orderRelease:
		if o.Token == "" {
			return o, fmt.Errorf("an order to %s must name a token", o.Kind)
		}
	case orderDrain:
		if o.Pod == "" || o.Namespace == "" {
			return o, fmt.Errorf("an order to drain must name pod and namespace")
		}
	default:
		return o, fmt.Errorf("order %q is not known here", o.Kind)
	}
	return o, nil
}

// orderLife is how long an order is kept: as long as the stream keeps it.
const orderLife = 24 * time.Hour

// orderBook remembers what was ordered last about tokens, for a day.
type orderBook struct {
	kinds map[string]orderKind
	// age has the tokens as they came, so that the oldest are at its front.
	age []orderAge
}

type orderAge struct {
	token string
	at    time.Time
}

func newOrderBook() *orderBook { return &orderBook{kinds: map[string]orderKind{}} }

func (b *orderBook) add(o order, now time.Time) {
	for len(b.age) > 0 && now.Sub(b.age[0].at) > orderLife {
		delete(b.kinds, b.age[0].token)
		b.age = b.age[1:]
	}
	if _, known := b.kinds[o.Token]; !known {
		b.age = append(b.age, orderAge{o.Token, now})
	}
	b.kinds[o.Token] = o.Kind
}

func (b *orderBook) get(token string) (orderKind, bool) {
	kind, ok := b.kinds[token]
	return kind, ok
}

// finishedLimit is how many outcomes are remembered.
const finishedLimit = 2000

// finishedTokens remembers the outcomes of attempts that ended lately (4).
type finishedTokens struct {
	outcomes map[string]outgoing
	age      []string
}

func newFinishedTokens() *finishedTokens { return &finishedTokens{outcomes: map[string]outgoing{}} }

func (f *finishedTokens) add(token string, outcome outgoing) {
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

func (f *finishedTokens) get(token string) (outgoing, bool) {
	outcome, ok := f.outcomes[token]
	return outcome, ok
}
