package taskqueue

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// depthLimit is how many levels of objects and lists JSON of the contract has at most.
const depthLimit = 100

// checkExact returns an error, with its place, for a number that not every program reads as the same
// one, and for JSON that is nested too deep. What is not JSON at all is an error too.
func checkExact(text []byte, place string) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return fmt.Errorf("%s: not JSON: %w", place, err)
	}
	return exact(value, place, depthLimit)
}

func exact(value any, place string, levels int) error {
	switch v := value.(type) {
	case map[string]any:
		if levels == 0 {
			return tooDeep(place)
		}
		for key, item := range v {
			if err := exact(item, place+"."+key, levels-1); err != nil {
				return err
			}
		}
	case []any:
		if levels == 0 {
			return tooDeep(place)
		}
		for index, item := range v {
			if err := exact(item, fmt.Sprintf("%s[%d]", place, index), levels-1); err != nil {
				return err
			}
		}
	case json.Number:
		return exactNumber(string(v), place)
	}
	return nil
}

func exactNumber(digits, place string) error {
	if !strings.ContainsAny(digits, ".eE") {
		if _, err := strconv.ParseInt(digits, 10, 64); err != nil {
			return fmt.Errorf("%s: an integer of more than 64 bits with its sign: use text", place)
		}
		return nil
	}
	if number, err := strconv.ParseFloat(digits, 64); err != nil || math.IsInf(number, 0) {
		return fmt.Errorf("%s: a number beyond what floating-point numbers hold: use text", place)
	}
	return nil
}

func tooDeep(place string) error {
	if len(place) > 200 {
		place = strings.ToValidUTF8(place[:200], "") + "…"
	}
	return fmt.Errorf("%s: nested deeper than %d levels: flatten it", place, depthLimit)
}
