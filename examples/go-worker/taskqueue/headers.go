package taskqueue

import (
	"encoding/binary"
	"math"
	"net"
	"sort"
	"strings"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// headersLimit is how many bytes the headers of a message may have that is published again: with its
// other properties they must fit one frame, or the broker closes the connection.
const headersLimit = 100 * 1024

// republished returns the headers of a message without the broker's own, and without the largest where
// all together would not fit a frame; tq-cut names these.
func republished(table amqp.Table) amqp.Table {
	kept := amqp.Table{}
	sizes := map[string]int{}
	var names []string
	total := 0
	for name, value := range table {
		if strings.HasPrefix(name, "x-") {
			continue
		}
		kept[name], sizes[name] = value, len(name)+1+fieldSize(value)
		total += sizes[name]
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool { return sizes[names[i]] > sizes[names[j]] })
	var cut []string
	for _, name := range names {
		if total <= headersLimit {
			break
		}
		total -= sizes[name]
		delete(kept, name)
		cut = append(cut, name)
	}
	if len(cut) > 0 {
		kept["tq-cut"] = cutText(strings.Join(cut, ", "), reasonLimit)
	}
	return kept
}

// fieldSize is how many bytes a header's value takes in a message, or a few more.
func fieldSize(value any) int {
	size := 9
	switch v := value.(type) {
	case string:
		size = 5 + len(v)
	case []byte:
		size = 5 + len(v)
	case amqp.Table:
		for name, item := range v {
			size += len(name) + 1 + fieldSize(item)
		}
	case []any:
		for _, item := range v {
			size += fieldSize(item)
		}
	}
	return size
}

// cutText returns text of no more bytes than the limit, cut after a whole character.
func cutText(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := limit - len("…")
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// unreadableHeader marks a message whose headers the library cannot read. No sender knows its name.
var unreadableHeader = "unreadable-" + newID()

// The library closes the connection over headers beyond these, and the broker would deliver the message
// again on the next.
const (
	fieldDepth    = 32
	fieldElements = 8192
)

// readableConn passes on what the broker sends, and replaces headers that the library cannot read by
// unreadableHeader.
type readableConn struct {
	net.Conn
	received []byte // frames that are not complete
	readable []byte // to be read
	chunk    [64 * 1024]byte
}

const (
	frameStart  = 7 // type, channel and size, before the payload; one byte follows it
	headerFrame = 2
	// contentStart is what precedes the properties of a content header: class, weight, size and flags.
	contentStart = 14
)

func (c *readableConn) Read(buffer []byte) (int, error) {
	for len(c.readable) == 0 {
		n, err := c.Conn.Read(c.chunk[:])
		if n > 0 {
			c.received = append(c.received, c.chunk[:n]...)
			c.passOn()
		}
		if err != nil && len(c.readable) == 0 {
			return 0, err
		}
	}
	n := copy(buffer, c.readable)
	c.readable = c.readable[n:]
	return n, nil
}

// passOn moves complete frames from received to readable.
func (c *readableConn) passOn() {
	c.readable = nil
	for len(c.received) >= frameStart {
		end := frameStart + int(binary.BigEndian.Uint32(c.received[3:frameStart])) + 1
		if c.received[0] == 'A' || end > 1<<20 { // no frame: the library says so
			end = len(c.received)
		}
		if end > len(c.received) {
			break
		}
		c.readable = append(c.readable, readableFrame(c.received[:end])...)
		c.received = c.received[end:]
	}
}

// readableFrame returns a frame with headers that the library can read.
func readableFrame(frame []byte) []byte {
	if frame[0] != headerFrame || len(frame) < frameStart+contentStart+1 {
		return frame
	}
	payload := frame[frameStart : len(frame)-1]
	const contentType, contentEncoding, headers = 1 << 15, 1 << 14, 1 << 13
	flags := binary.BigEndian.Uint16(payload[contentStart-2:])
	if flags&headers == 0 {
		return frame
	}
	fields := fieldReader{data: payload[contentStart:]}
	for _, flag := range []uint16{contentType, contentEncoding} {
		if flags&flag != 0 {
			fields.shortString()
		}
	}
	if fields.table(0); !fields.failed {
		return frame
	}
	name := unreadableHeader
	table := append([]byte{byte(len(name))}, name...)
	table = append(table, 't', 1)
	changed := binary.BigEndian.AppendUint16(append([]byte{}, payload[:contentStart-2]...), headers)
	changed = append(binary.BigEndian.AppendUint32(changed, uint32(len(table))), table...)
	whole := binary.BigEndian.AppendUint32(append([]byte{}, frame[:3]...), uint32(len(changed)))
	return append(append(whole, changed...), frame[len(frame)-1])
}

// fieldReader goes through headers as the library does, and keeps nothing of them.
type fieldReader struct {
	data   []byte
	failed bool
}

// take returns the next bytes; none, and failed is true, if there are not that many.
func (f *fieldReader) take(size uint64) []byte {
	if f.failed || size > uint64(len(f.data)) {
		f.failed, f.data = true, nil
		return nil
	}
	taken := f.data[:size]
	f.data = f.data[size:]
	return taken
}

func (f *fieldReader) shortString() {
	if size := f.take(1); size != nil {
		f.take(uint64(size[0]))
	}
}

// longString returns the content of a value that begins with its length.
func (f *fieldReader) longString() []byte {
	size := f.take(4)
	if size == nil {
		return nil
	}
	return f.take(uint64(binary.BigEndian.Uint32(size)))
}

// table goes through a table at a depth.
func (f *fieldReader) table(depth int) {
	f.container(depth, func(inner *fieldReader) {
		inner.shortString()
		inner.field(depth)
	})
}

func (f *fieldReader) container(depth int, element func(*fieldReader)) {
	inner := fieldReader{data: f.longString(), failed: f.failed || depth > fieldDepth}
	for count := 0; len(inner.data) > 0 && !inner.failed; count++ {
		element(&inner)
		inner.failed = inner.failed || count >= fieldElements
	}
	f.failed = f.failed || inner.failed
}

// fieldSizes are the bytes of values of a fixed size.
var fieldSizes = map[byte]uint64{
	't': 1, 'B': 1, 'b': 1, 's': 2, 'u': 2, 'I': 4, 'i': 4, 'f': 4, 'l': 8, 'd': 8, 'T': 8, 'D': 5, 'V': 0,
}

func (f *fieldReader) field(depth int) {
	kind := f.take(1)
	if kind == nil {
		return
	}
	switch kind[0] {
	case 'S', 'x':
		f.failed = len(f.longString()) > math.MaxInt32 || f.failed
	case 'A':
		f.container(depth+1, func(inner *fieldReader) { inner.field(depth + 1) })
	case 'F':
		f.table(depth + 1)
	default:
		size, known := fieldSizes[kind[0]]
		f.take(size)
		f.failed = f.failed || !known
	}
}
