package kubernetes

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// recordName is the name of a function's ConfigMap.
func recordName(ref backend.Ref) string { return "faas-predict-" + ref.Name }

// objectName is the name of a workload's Deployment, Service and PodDisruptionBudget: it starts with the function's where
// that makes a Service's name, which is a DNS label that starts with a letter.
func objectName(ref backend.Ref, id string) string {
	const longest = 63
	if name := ref.Name + "-" + id; len(name) <= longest && ref.Name[0] >= 'a' {
		return name
	}
	sum := sha256.Sum256([]byte(ref.Name))
	return "f" + hex.EncodeToString(sum[:8]) + "-" + id
}
