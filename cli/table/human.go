package table

import (
	"fmt"
	"strconv"
	"time"
)

// Size prints bytes with decimal units and three digits, as "4.33MB".
func Size(n int64) string {
	return scaled(float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB"})
}

// BinarySize prints bytes with binary units, as "4.1MiB".
func BinarySize(n int64) string {
	return scaled(float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"})
}

func scaled(f, unit float64, names []string) string {
	i := 0
	for f >= unit && i < len(names)-1 {
		f /= unit
		i++
	}
	return strconv.FormatFloat(f, 'g', precision(f), 64) + names[i]
}

// precision keeps three digits, and never an exponent.
func precision(f float64) int {
	if f >= 1000 {
		return 4
	}
	return 3
}

// Age prints how long something took or is past, in words: "3 minutes".
func Age(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	for _, s := range []struct {
		below, unit time.Duration
		name        string
	}{
		{2 * time.Minute, time.Second, "second"}, {2 * time.Hour, time.Minute, "minute"}, {48 * time.Hour, time.Hour, "hour"},
		{14 * 24 * time.Hour, 24 * time.Hour, "day"}, {60 * 24 * time.Hour, 7 * 24 * time.Hour, "week"},
		{2 * 365 * 24 * time.Hour, 30 * 24 * time.Hour, "month"}, {1 << 62, 365 * 24 * time.Hour, "year"},
	} {
		if d >= s.below {
			continue
		}
		if n := int(d / s.unit); n != 1 {
			return fmt.Sprintf("%d %ss", n, s.name)
		}
		return "1 " + s.name
	}
	return "long"
}

// Ago prints a time as its age; the zero time is "".
func Ago(t, now time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return ""
	}
	return Age(now.Sub(t)) + " ago"
}
