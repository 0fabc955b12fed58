package container

import "math/rand/v2"

// The parts of names for containers that nobody has named: harbours are full of them.
var (
	nameQualities = []string{
		"amber", "brisk", "calm", "clear", "coral", "crisp", "eager", "early", "fair", "gentle", "gleaming", "golden", "hardy", "high",
		"jolly", "keen", "light", "lively", "mellow", "merry", "misty", "noble", "northern", "patient", "plucky", "proud", "quick",
		"quiet", "ready", "rosy", "salty", "sandy", "sharp", "silver", "sleek", "spry", "steady", "sunny", "swift", "trim", "true", "windy",
	}
	nameVessels = []string{
		"anchor", "bark", "barge", "beacon", "brig", "buoy", "canoe", "capstan", "clipper", "compass", "cutter", "dinghy", "dory",
		"ferry", "frigate", "galleon", "harbour", "jib", "kayak", "keel", "ketch", "lantern", "launch", "lugger", "mast", "oar", "packet",
		"pilot", "pontoon", "quay", "raft", "rudder", "sail", "schooner", "skiff", "sloop", "spar", "tender", "tide", "trawler", "tug", "yawl",
	}
)

// madeUpName is a name with a number, so that hardly any two are the same.
func madeUpName() string {
	const digits = "0123456789"
	n := []byte{digits[rand.IntN(10)], digits[rand.IntN(10)], digits[rand.IntN(10)]}
	return nameQualities[rand.IntN(len(nameQualities))] + "_" + nameVessels[rand.IntN(len(nameVessels))] + string(n)
}
