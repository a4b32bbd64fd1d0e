{{- define "osier.suffix" }}{{ if .Values.revision }}-{{ .Values.revision }}{{ end }}{{ end }}
{{- define "osier.revision" }}{{ if .Values.revision }}{{ .Values.revision }}{{ else }}default{{ end }}{{ end }}
{{- define "osier.labels" }}
    app: osier-pilot
    app.kubernetes.io/name: osier-pilot
    app.kubernetes.io/part-of: osier
    istio.io/rev: "{{ template "osier.revision" . }}"
{{- end }}
{{- define "osier.selector" }}
      app: osier-pilot
      istio.io/rev: "{{ template "osier.revision" . }}"
{{- end }}
{{- define "osier.gateway" }}
    app: osier-ingressgateway
    istio: ingressgateway
    app.kubernetes.io/name: osier-ingressgateway
    app.kubernetes.io/part-of: osier
    istio.io/rev: "{{ template "osier.revision" . }}"
{{- end }}
