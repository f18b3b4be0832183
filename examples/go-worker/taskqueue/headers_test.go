package taskqueue

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// fieldsOf returns headers of one value as they travel.
func fieldsOf(value []byte) []byte {
	inner := append([]byte("\x01a"), value...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(inner))), inner...)
}

func long(kind byte, content []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content))), content...)
}

func nested(kind byte, depth int) []byte {
	value := []byte{'V'}
	for i := 0; i < depth; i++ {
		if kind == 'F' {
			value = append([]byte("\x01a"), value...)
		}
		value = long(kind, value)
	}
	return value
}

// headerOf returns a content header with these headers.
func headerOf(fields []byte) []byte {
	payload := append([]byte{0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 1<<5 | 1<<7, 0}, "\x04text"...)
	payload = append(payload, fields...)
	frame := binary.BigEndian.AppendUint32([]byte{headerFrame, 0, 1}, uint32(len(payload)))
	return append(append(frame, payload...), 0xCE)
}

func TestHeadersThatTheLibraryCannotReadAreMarked(t *testing.T) {
	many := bytes.Repeat([]byte{'V'}, fieldElements+1)
	for name, example := range map[string]struct {
		value    []byte
		readable bool
	}{
		"nothing":          {[]byte{'V'}, true},
		"text":             {long('S', []byte("\xff\xfe")), true},
		"decimal":          {[]byte{'D', 255, 0, 0, 0, 1}, true},
		"32 tables":        {nested('F', 32), true},
		"33 tables":        {nested('F', 33), false},
		"500 tables":       {nested('F', 500), false},
		"32 arrays":        {nested('A', 32), true},
		"33 arrays":        {nested('A', 33), false},
		"8192 elements":    {long('A', many[1:]), true},
		"8193 elements":    {long('A', many), false},
		"a type of nobody": {[]byte{'?'}, false},
		"pika's type":      {append([]byte{'L'}, make([]byte, 8)...), false},
		"a text cut off":   {[]byte{'S', 255, 255, 255, 255, 'x'}, false},
		"a value cut off":  {[]byte{'l', 0, 0}, false},
	} {
		frame := headerOf(fieldsOf(example.value))
		changed := readableFrame(frame)
		if same := bytes.Equal(changed, frame); same != example.readable {
			t.Errorf("%s: passed on as it is: %t", name, same)
		}
		if marked := bytes.Contains(changed, []byte(unreadableHeader)); marked == example.readable {
			t.Errorf("%s: marked: %t", name, marked)
		}
		if size := binary.BigEndian.Uint32(changed[3:7]); int(size) != len(changed)-8 || changed[len(changed)-1] != 0xCE {
			t.Errorf("%s: no frame: %d of %d bytes", name, size, len(changed))
		}
	}
}

func TestFramesComeAsTheyWereInWhateverPiecesTheyCome(t *testing.T) {
	bad := headerOf(fieldsOf(nested('F', 40)))
	good := headerOf(fieldsOf([]byte{'t', 1}))
	body := append(binary.BigEndian.AppendUint32([]byte{3, 0, 1}, 5), "hello\xce"...)
	sent := bytes.Join([][]byte{body, bad, body, good, body}, nil)
	expected := bytes.Join([][]byte{body, readableFrame(bad), body, good, body}, nil)
	for _, size := range []int{1, 3, 7, 8, 100, len(sent)} {
		ours, theirs := net.Pipe()
		go func() {
			for begin := 0; begin < len(sent); begin += size {
				_, _ = theirs.Write(sent[begin:min(begin+size, len(sent))])
			}
			_ = theirs.Close()
		}()
		read, err := io.ReadAll(&readableConn{Conn: ours})
		if err != nil || !bytes.Equal(read, expected) {
			t.Errorf("in pieces of %d: %v, %d bytes instead of %d", size, err, len(read), len(expected))
		}
	}
}

func TestAMessageWithUnreadableHeadersIsRefused(t *testing.T) {
	d := &amqp.Delivery{Exchange: directExchange, Headers: amqp.Table{unreadableHeader: true}, Body: []byte("{}")}
	_, err := parse(d)
	if err == nil || !strings.Contains(err.Error(), "headers cannot be read") {
		t.Fatalf("parsed: %v", err)
	}
	table := deadLetter(d, "shop.go", err.Error()).publishing.Headers
	if len(table) != 2 || table["tq-exchange"] != directExchange {
		t.Errorf("its copy has headers %v", table)
	}
}

func TestACopyFitsAFrame(t *testing.T) {
	d := &amqp.Delivery{Headers: amqp.Table{
		"x-death": strings.Repeat("x", 1000),
		"small":   int32(1),
		"large":   strings.Repeat("x", 80_000),
		"larger":  amqp.Table{"a": []any{strings.Repeat("x", 40_000), []byte("y")}},
	}}
	table := deadLetter(d, "shop.go", strings.Repeat("é", 2000)).publishing.Headers
	if table["tq-cut"] != "large" || table["small"] != int32(1) || table["larger"] == nil || table["x-death"] != nil {
		t.Errorf("its headers are cut: %v", table["tq-cut"])
	}
	reason, _ := table["tq-error"].(string)
	if len(reason) > reasonLimit || !strings.HasSuffix(reason, "é…") {
		t.Errorf("its reason has %d bytes, and ends with %q", len(reason), reason[len(reason)-5:])
	}
}
