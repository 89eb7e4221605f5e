{{- define "faas-predict.labels" -}}
app.kubernetes.io/name: faas-predict
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "faas-predict.selector" -}}
app.kubernetes.io/name: faas-predict
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "faas-predict.authSecret" -}}
{{- .Values.basicAuth.existingSecret | default (printf "%s-basic-auth" .Release.Name) }}
{{- end }}
