package cluster

import "time"

// Grace is how a container ends. For Serving it still takes calls, so that every provider can learn that
// it leaves; then, within Drain, it answers what it has. After both it is killed.
type Grace struct{ Serving, Drain time.Duration }

// Whole is how long the engine waits before it kills.
func (g Grace) Whole() time.Duration { return g.Serving + g.Drain + killMargin }

// killMargin lets fwatchdog end by itself: it logs what did not end in time.
const killMargin = 2 * time.Second
