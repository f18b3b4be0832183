package taskqueue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// storedLimit is the longest result that a store takes, in bytes.
const storedLimit = 32 << 20

// jsonType is the content type of a result that is a JSON object.
const jsonType = "application/json"

// mediaType is what the contract takes for one.
var mediaType = regexp.MustCompile(`^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;[ -~]*)?$`)

// storePatience is how long a store that is away is tried, at most.
const storePatience = 60 * time.Second

// storeTimeout is how long one call to the store may take.
const storeTimeout = 10 * time.Second

// storeReport is how much of an attempt's time is left to report that its result was not stored.
const storeReport = time.Second

// longestStorePause is the longest pause between two tries.
const longestStorePause = 5 * time.Second

// Binary is a result that is bytes, with a media type such as image/png; "": application/octet-stream. It
// needs a TaskQueue with a store of results.
type Binary struct {
	Body        []byte
	ContentType string
}

// storedResult is a result as a store has it.
type storedResult struct {
	body        []byte
	contentType string
}

// resultRef is what an outcome says of a result in the store; where it is follows from the attempt.
type resultRef struct {
	SizeBytes   int    `json:"sizeBytes"`
	ContentType string `json:"contentType"`
	SHA256      string `json:"sha256"`
}

// binaryResult is the end of a handler that returned bytes.
func binaryResult(b Binary) ending {
	kind := b.ContentType
	if kind == "" {
		kind = "application/octet-stream"
	}
	if len(kind) > 255 || !mediaType.MatchString(kind) {
		return ending{error: newError("InvalidResult", fmt.Sprintf("%q is no media type", kind), false)}
	}
	return forStore(b.Body, kind)
}

// forStore is the end of a handler that returned what no status takes.
func forStore(body []byte, contentType string) ending {
	if len(body) > storedLimit {
		text := fmt.Sprintf("the result has %d bytes, and a store takes %d: write it to where it belongs "+
			"in the handler, and return where that is", len(body), storedLimit)
		return ending{error: newError("ResultTooLarge", text, false)}
	}
	return ending{unstored: &storedResult{body, contentType}}
}

// withoutStore is an end whose result only a store could keep, where there is none.
func withoutStore(end ending) ending {
	advice := "give the TaskQueue a store for them (spec.results.store), or store it elsewhere and return " +
		"where it is; only the results of Tasks go to a store"
	size, kind := len(end.unstored.body), end.unstored.contentType
	failure := newError("ResultTooLarge", fmt.Sprintf("the result is %d bytes of JSON, the limit is %d: %s",
		size, resultLimit, advice), false)
	if kind != jsonType {
		failure = newError("InvalidResult", fmt.Sprintf("the result is %d bytes of %s, and a status takes "+
			"JSON only: %s", size, kind, advice), false)
	}
	return ending{error: failure, took: end.took}
}

// resultStore writes results to Redis or Valkey, which is the one kind of store that this worker knows.
type resultStore struct {
	settings ResultSettings

	mutex  sync.Mutex
	uri    string
	client *redis.Client
}

// ResultSettings say where results go.
type ResultSettings struct {
	// Directory has the keys of the store's Secret as files; or "".
	Directory string
	// URI is that of the store where there is no file; "": there is none.
	URI string
	// Always: every result goes to the store, not only those that no status takes.
	Always bool
	// Retention is how long the store keeps one; 0: without end.
	Retention time.Duration
}

// newResultStore returns the store; nil if there is none.
func newResultStore(settings ResultSettings) *resultStore {
	if settings.Directory == "" && settings.URI == "" {
		return nil
	}
	return &resultStore{settings: settings}
}

// key is where the result of an attempt is (see the contract).
func storeKey(m *message) string {
	return fmt.Sprintf("%s/%s/%s/%d-%d", m.namespace, m.queue, m.correlationID, m.attempt, m.epoch)
}

// keep writes the result of an attempt that has ended, if it is for the store, and returns the end as it is
// then: with what is in the store, or as a failure that another attempt may help against.
func (s *resultStore) keep(ctx context.Context, m *message, end ending, limit time.Duration) ending {
	if s.settings.Always && end.result != nil {
		end.unstored = &storedResult{end.result, jsonType}
	}
	if end.unstored == nil {
		return end
	}
	ctx, stop := context.WithTimeout(ctx, max(min(storePatience, limit-end.took-storeReport), storeReport))
	defer stop()
	pause := 200 * time.Millisecond
	for {
		kept, lasting, err := s.put(ctx, storeKey(m), *end.unstored)
		if err == nil {
			sum := sha256.Sum256(kept.body)
			return ending{took: end.took, reference: &resultRef{len(kept.body), kept.contentType, hex.EncodeToString(sum[:])}}
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, longestStorePause)
		case <-ctx.Done():
			lasting = true
		}
		if lasting {
			text := fmt.Sprintf("its result of %d bytes was not stored: %s", len(end.unstored.body), err)
			return ending{error: newError("ResultNotStored", text, true), took: end.took}
		}
	}
}

// put writes a result unless there is one of the key, and returns the one that is there. An error is lasting
// if trying again does not help.
func (s *resultStore) put(ctx context.Context, key string, result storedResult) (kept storedResult, lasting bool, err error) {
	client, err := s.open()
	if err != nil {
		return result, false, err
	}
	ctx, stop := context.WithTimeout(ctx, storeTimeout)
	defer stop()
	pipe := client.TxPipeline()
	written := pipe.HSetNX(ctx, key, "type", result.contentType)
	pipe.HSetNX(ctx, key, "body", result.body)
	if s.settings.Retention > 0 {
		pipe.PExpire(ctx, key, s.settings.Retention)
	} else {
		pipe.Persist(ctx, key)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return result, isRefusal(err), fmt.Errorf("cannot write %s: %w", key, err)
	}
	if written.Val() {
		return result, false, nil
	}
	found, err := client.HMGet(ctx, key, "type", "body").Result()
	if err != nil {
		return result, isRefusal(err), fmt.Errorf("cannot read %s: %w", key, err)
	}
	contentType, known := found[0].(string)
	body, there := found[1].(string)
	if !known || !there {
		return result, false, fmt.Errorf("%s was deleted while it was written", key)
	}
	return storedResult{[]byte(body), contentType}, false, nil
}

// open returns a client of the store that the settings name now.
func (s *resultStore) open() (*redis.Client, error) {
	uri := s.settings.URI
	if s.settings.Directory != "" {
		text, err := os.ReadFile(filepath.Join(s.settings.Directory, "uri"))
		if err == nil {
			uri = strings.TrimSpace(string(text))
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.client != nil && s.uri == uri {
		return s.client, nil
	}
	if !strings.HasPrefix(uri, "redis://") && !strings.HasPrefix(uri, "rediss://") {
		return nil, errors.New("this worker stores results in Redis only: the key uri of the Secret that " +
			"spec.results.store names has to begin with redis:// or rediss://")
	}
	options, err := redis.ParseURL(uri)
	if err != nil {
		return nil, errors.New("the key uri of the Secret that spec.results.store names is no address of Redis")
	}
	options.MaxRetries = -1 // `keep` tries again
	options.ReadTimeout, options.WriteTimeout, options.DialTimeout = storeTimeout, storeTimeout, storeTimeout
	if s.client != nil {
		_ = s.client.Close()
	}
	s.client, s.uri = redis.NewClient(options), uri
	return s.client, nil
}

// isRefusal reports whether the server has refused it, and will again until somebody changes something.
func isRefusal(err error) bool {
	text := err.Error()
	for _, word := range []string{"WRONGPASS", "NOAUTH", "NOPERM", "MOVED", "ERR invalid password"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}
