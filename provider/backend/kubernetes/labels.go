package kubernetes

import "k8s.io/apimachinery/pkg/util/validation"

// validLabel reports whether Kubernetes takes a label.
func validLabel(name, value string) bool {
	return len(validation.IsQualifiedName(name)) == 0 && len(validation.IsValidLabelValue(value)) == 0
}
