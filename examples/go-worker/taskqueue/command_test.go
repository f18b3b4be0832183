package taskqueue

import "testing"

func TestTheLastWordOfTheOwnInstallationCounts(t *testing.T) {
	const (
		older     = `{"order": "cancel", "token": "none", "understands": ["reserved-types"]}`
		byDefault = `{"order": "cancel", "token": "none", "understands": ["reserved-types"], "installation": "default"}`
		ofTeamA   = `{"order": "cancel", "token": "none", "understands": ["reserved-types"], "installation": "team-a"}`
		firstOnes = `{"order": "cancel", "token": "none", "uid": "none"}`
	)
	for _, each := range []struct {
		installation string
		said         []string
		prefixed     bool
	}{
		{"default", []string{older}, true},
		{"default", []string{byDefault}, true},
		{"default", []string{ofTeamA}, false},
		{"default", []string{byDefault, ofTeamA}, true},
		{"default", []string{byDefault, firstOnes}, false},
		{"team-a", []string{ofTeamA}, true},
		{"team-a", []string{older, byDefault}, false},
		{"team-a", []string{ofTeamA, firstOnes}, true},
	} {
		d := newDispatcher(Settings{Installation: each.installation}, nil, nil, nil)
		for _, body := range each.said {
			command, err := parseCommand([]byte(body))
			if err != nil {
				t.Fatal(err)
			}
			d.onCommand(command)
		}
		if d.prefixed != each.prefixed {
			t.Errorf("%s, after %v: prefixed %v", each.installation, each.said, d.prefixed)
		}
	}
}
