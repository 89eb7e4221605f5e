package deployment

import (
	"maps"

	"github.com/openfaas/faas-provider/types"
)

// Status says what was deployed, word for word. How it is, its calls and the replicas that answer, is the
// backend's to add.
func (r *Record) Status() types.FunctionStatus {
	return types.FunctionStatus{
		Name:                   r.Spec.Service,
		Namespace:              r.Spec.Namespace,
		Image:                  r.Spec.Image,
		EnvProcess:             r.Spec.EnvProcess,
		EnvVars:                maps.Clone(r.Spec.EnvVars),
		Constraints:            r.Spec.Constraints,
		Secrets:                r.Spec.Secrets,
		Labels:                 r.Spec.Labels,
		Annotations:            r.Spec.Annotations,
		Limits:                 r.Spec.Limits,
		Requests:               r.Spec.Requests,
		ReadOnlyRootFilesystem: r.Spec.ReadOnlyRootFilesystem,
		Replicas:               r.Replicas,
		CreatedAt:              r.CreatedAt,
	}
}
